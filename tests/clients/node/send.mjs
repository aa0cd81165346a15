// Sends a trace by each exporter that OpenTelemetry has for Node, and prints the ids of the traces.
// usage: node send.mjs '{"otlp-http": "host:port", "otlp-grpc": …, "zipkin": …}'
import { SpanKind, SpanStatusCode, context, trace } from '@opentelemetry/api';
import { OTLPTraceExporter as Grpc } from '@opentelemetry/exporter-trace-otlp-grpc';
import { OTLPTraceExporter as Json } from '@opentelemetry/exporter-trace-otlp-http';
import { OTLPTraceExporter as Proto } from '@opentelemetry/exporter-trace-otlp-proto';
import { ZipkinExporter } from '@opentelemetry/exporter-zipkin';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node';

const at = JSON.parse(process.argv[2]);
const exporters = {
  json: new Json({ url: `http://${at['otlp-http']}/v1/traces` }),
  proto: new Proto({ url: `http://${at['otlp-http']}/v1/traces`, compression: 'gzip' }),
  grpc: new Grpc({ url: `http://${at['otlp-grpc']}` }),
  zipkin: new ZipkinExporter({ url: `http://${at.zipkin}/api/v2/spans` }),
};
const ids = {};
for (const [name, exporter] of Object.entries(exporters)) {
  const provider = new NodeTracerProvider({
    resource: resourceFromAttributes({ 'service.name': `node-${name}` }),
    spanProcessors: [new SimpleSpanProcessor(exporter)],
  });
  const tracer = provider.getTracer('send', '1.0');
  const root = tracer.startSpan('GET /orders', { kind: SpanKind.SERVER, attributes: { 'http.status_code': 503, tags: ['a', 'b'] } });
  const child = tracer.startSpan('SELECT', { kind: SpanKind.CLIENT, attributes: { 'db.system': 'postgresql', ok: true, share: 0.5 } }, trace.setSpan(context.active(), root));
  child.addEvent('retry', { attempt: 2 });
  child.recordException(new Error('lost'));
  child.setStatus({ code: SpanStatusCode.ERROR, message: 'connection lost' });
  child.end();
  root.end();
  ids[name] = root.spanContext().traceId;
  await provider.shutdown();
}
console.log(JSON.stringify(ids));
