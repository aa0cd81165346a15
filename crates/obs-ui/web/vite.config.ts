import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

// Un-hashed names keep the committed dist/ small in history; caches are told apart by ETag.
export default defineConfig({
  plugins: [svelte()],
  build: {
    outDir: process.env.UI_OUT ?? '../dist',
    emptyOutDir: true,
    target: 'es2022',
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: { entryFileNames: 'a/[name].js', chunkFileNames: 'a/[name].js', assetFileNames: 'a/[name][extname]' },
    },
  },
  server: { proxy: Object.fromEntries(['/api', '/prometheus', '/loki', '/jaeger', '/health'].map((p) => [p, process.env.OBSERVATORY ?? 'http://127.0.0.1:3000'])) },
  test: { include: ['src/**/*.test.ts'] },
});
