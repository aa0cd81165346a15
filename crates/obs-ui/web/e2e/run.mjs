// Walks the page as a person would, against the real binary with its demo data, and asks axe.
// usage: OBSERVATORY_BIN=path node e2e/run.mjs
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AxeBuilder } from '@axe-core/playwright';
import { chromium } from 'playwright-core';

const bin = process.env.OBSERVATORY_BIN;
const chrome = process.env.CHROME ?? '/usr/bin/chromium';
assert(bin && existsSync(bin), 'OBSERVATORY_BIN must name the built binary');
assert(existsSync(chrome), `${chrome} is not there; install chromium or set CHROME`);
const shots = process.env.SHOTS;
const data = mkdtempSync(join(tmpdir(), 'observatory-e2e-'));
// A target that nobody serves, and a rule that fires because of it.
const config = mkdtempSync(join(tmpdir(), 'observatory-e2e-config-'));
writeFileSync(join(config, 'rules.yml'), "groups:\n- name: watch\n  interval: 1s\n  rules:\n  - alert: Gone\n    expr: up{job=\"nobody\"} == 0\n    annotations: {summary: '{{ $labels.job }} <b>is</b> gone'}\n");
writeFileSync(join(config, 'prometheus.yml'), "global: {scrape_interval: 1s}\nrule_files: [rules.yml]\nscrape_configs:\n- job_name: nobody\n  static_configs: [{targets: ['127.0.0.1:1'], labels: {team: x}}]\n");
writeFileSync(join(config, 'alertmanager.yml'), "route:\n  receiver: ops\n  group_by: [alertname]\n  group_wait: 0s\n  routes: [{receiver: db, matchers: ['team=db']}]\nreceivers: [{name: ops, webhook_configs: [{url: 'http://127.0.0.1:1/hook'}]}, {name: db}, {name: spare}]\n");
writeFileSync(join(config, 'slos.yml'), "slos: [{name: watched, objective: 99, window: 1h, sli: {bad: 'sum(count_over_time(up{job=\"other\"}[$window]))', total: 'sum(count_over_time(up[$window]))'}}]\n");
writeFileSync(join(config, 'observatory.yaml'), 'prometheus: {config_file: prometheus.yml, slo_files: [slos.yml]}\nalertmanager: {config_file: alertmanager.yml}\nprofile: storage\n');
const server = spawn(bin, ['serve', '--demo', '--config', join(config, 'observatory.yaml'), '--data', data, '--listen', 'all=127.0.0.1:0'], { stdio: ['ignore', 'ignore', 'inherit'] });
const wait = (ms) => new Promise((r) => setTimeout(r, ms));

async function until(what, test, ms = 90_000) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await test().catch(() => null);
    if (value) return value;
    assert(Date.now() < end, `timed out waiting for ${what}`);
    await wait(200);
  }
}

let passed = 0;
let failed = 0;
async function step(name, run) {
  try {
    await run();
    passed++;
    console.log(`ok - ${name}`);
  } catch (e) {
    failed++;
    console.log(`not ok - ${name}\n${e.stack}`);
  }
}

let browser;
try {
  const endpoints = await until('endpoints.json', async () => JSON.parse(readFileSync(join(data, 'endpoints.json'), 'utf8')));
  const base = `http://${endpoints.ui}`;
  const json = async (path) => (await fetch(base + path)).json();
  await until('the demo history', async () => (await json('/jaeger/api/services')).data.includes('evaluator'));
  await until('demo metrics', async () => (await json('/prometheus/api/v1/query?query=inference_retries_total')).data.result.length);
  browser = await chromium.launch({ executablePath: chrome, args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'] });
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  const problems = [];
  page.on('pageerror', (e) => problems.push(e.message));
  // Chromium's console also reports refused requests; only the page's own errors count.
  page.on('console', (m) => m.type() === 'error' && !/Failed to load resource/.test(m.text()) && problems.push(m.text()));
  await page.route('**', (route) => (route.request().url().startsWith(base) ? route.continue() : (problems.push(`foreign request ${route.request().url()}`), route.abort())));
  const shot = async (name) => shots && page.screenshot({ path: join(shots, `${name}.png`) });
  const axe = async (where) => {
    // Results that wait for newer ones are dimmed meanwhile.
    await page.waitForFunction(() => !document.querySelector('.stale'));
    const { violations } = await new AxeBuilder({ page }).withTags(['wcag2a', 'wcag2aa', 'wcag21aa']).analyze();
    const serious = violations.filter((v) => ['serious', 'critical'].includes(v.impact));
    assert.deepEqual(serious.map((v) => `${where}: ${v.id}: ${v.nodes[0]?.html}`), []);
  };

  await step('Home shows spend, requests, errors, latency and health', async () => {
    await page.goto(base + '/');
    const spend = page.getByRole('region', { name: 'Spend' }).locator('.value');
    await spend.filter({ hasText: /^\$\d+\.\d\d$/ }).waitFor();
    const summary = await json(`/api/v1/llm/summary`);
    const shown = Number((await spend.textContent()).replace(/[$,]/g, ''));
    assert(Math.abs(shown - Number(summary.total.cost_usd)) < 0.2, `${shown} against ${summary.total.cost_usd}`);
    assert.match(await page.getByRole('region', { name: 'Health' }).locator('.value').textContent(), /healthy/);
    await page.getByRole('region', { name: 'Services' }).getByRole('link', { name: 'gateway' }).waitFor();
    await page.locator('[data-series="5"] canvas').waitFor();
    await shot('home-light');
    await axe('home');
  });

  await step('the overview sums calls up and says what moved', async () => {
    await page.getByRole('link', { name: 'Overview', exact: true }).click();
    await page.getByRole('region', { name: 'By model' }).getByRole('button', { name: 'gpt-4o-mini', exact: false }).first().waitFor();
    await page.getByRole('region', { name: 'What moved' }).getByRole('row').nth(1).waitFor();
    await page.getByRole('region', { name: 'Errors' }).getByRole('link').first().waitFor();
    assert.match(await page.getByRole('region', { name: 'Requests' }).textContent(), /errors, .* refused/);
    await shot('llm-light');
    await axe('llm');
    await page.getByRole('region', { name: 'By model' }).getByRole('row', { name: /^gpt-4o-mini/ }).getByRole('link', { name: 'calls' }).first().click();
    await page.waitForURL(/\/llm\/generations\?.*model=gpt-4o-mini/);
  });

  await step('generations show what was said, facets narrow them, and the view is saved', async () => {
    await page.getByRole('link', { name: 'Generations', exact: true }).click();
    const calls = page.getByRole('region', { name: 'Calls', exact: true });
    await calls.getByRole('link').first().waitFor();
    await page.getByRole('complementary', { name: 'Filters' }).getByRole('button', { name: /claude-sonnet-4-5-20250929/ }).click();
    await page.waitForURL(/model=claude-sonnet-4-5-20250929/);
    await calls.getByText('anthropic').first().waitFor();
    await until('only one model', async () => (await calls.getByText('gpt-4o-mini').count()) === 0);
    await calls.locator('td.said').filter({ hasText: /\w+.*→ \w/ }).first().waitFor();
    page.once('dialog', (d) => d.accept('Only <b>Sonnet</b>'));
    await page.getByRole('button', { name: 'Save view' }).click();
    await page.getByRole('button', { name: 'Delete view' }).waitFor();
    await page.getByRole('button', { name: 'Clear filters' }).click();
    await page.getByRole('complementary', { name: 'Filters' }).getByRole('button', { name: /unpriced/ }).waitFor();
    await axe('generations');
    await shot('generations');
    await page.getByRole('combobox', { name: 'Saved view' }).selectOption('Only <b>Sonnet</b>');
    await page.waitForURL(/model=claude-sonnet-4-5-20250929/);
    page.once('dialog', (d) => d.accept());
    await page.getByRole('button', { name: 'Delete view' }).click();
    await page.getByRole('combobox', { name: 'Saved view' }).waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'Clear filters' }).click();
  });

  await step('two calls are compared', async () => {
    await page.getByRole('checkbox', { name: 'Compare call 1', exact: true }).check();
    await page.getByRole('checkbox', { name: 'Compare call 2', exact: true }).check();
    await page.getByRole('link', { name: 'Compare the two calls' }).click();
    await page.waitForURL(/\/llm\/compare\?/);
    const table = page.getByRole('table', { name: 'The calls' });
    await table.getByRole('row', { name: /^Tokens in \d/ }).waitFor();
    await page.getByRole('region', { name: 'Call B' }).getByRole('list', { name: 'Conversation' }).waitFor();
    await axe('compare calls');
    await shot('compare-calls');
    await page.goBack();
  });

  await step('agents, models and tools are drawn with who asked whom', async () => {
    await page.getByRole('link', { name: 'Agents', exact: true }).click();
    const asked = page.getByRole('region', { name: 'Who asked whom' });
    await asked.getByRole('row', { name: /agent .* model/ }).first().waitFor();
    await page.getByRole('region', { name: 'Map' }).getByRole('link', { name: /gpt-4o-mini/ }).first().waitFor();
    await axe('agents');
    await shot('agents');
    await page.goBack();
  });

  await step('a call opens its trace with the conversation', async () => {
    await page.getByRole('complementary', { name: 'Filters' }).getByRole('button', { name: /^stop/ }).click();
    await page.waitForURL(/finish_reason=stop/);
    await page.getByRole('region', { name: 'Calls', exact: true }).getByRole('link').first().click();
    await page.waitForURL(/\/traces\/[0-9a-f]{32}.*span=/);
    const talk = page.getByRole('list', { name: 'Conversation' });
    await talk.getByText('You are a helpful support agent.').waitFor();
    await talk.getByText('tool call', { exact: true }).first().waitFor();
    await talk.getByText('tool result').first().waitFor();
    await talk.getByText('answer', { exact: true }).waitFor();
    assert((await page.getByRole('treeitem').count()) >= 8);
    await shot('trace-light');
    await axe('trace');
  });

  await step('the critical path is drawn, and the trace compared with another', async () => {
    const stretches = page.getByRole('img', { name: 'On the critical path' });
    await stretches.first().waitFor();
    await page.getByRole('treeitem').first().click();
    await page.keyboard.press('c');
    await stretches.first().waitFor({ state: 'detached' });
    await page.keyboard.press('c');
    await stretches.first().waitFor();
    const trace = page.url();
    await page.getByRole('button', { name: 'Archive', exact: true }).click();
    await page.getByRole('button', { name: 'Archived', exact: true }).waitFor();
    const found = await json('/tempo/api/search?limit=2&q=' + encodeURIComponent('{ span.gen_ai.operation.name = "chat" }'));
    const other = found.traces.map((t) => t.traceID.padStart(32, '0')).find((id) => !trace.includes(id));
    await page.getByRole('textbox', { name: 'Compare with trace id' }).fill(other);
    await page.keyboard.press('Enter');
    await page.waitForURL(/\/traces\/compare\?/);
    const places = page.getByRole('table', { name: 'Places in the traces' });
    await places.getByRole('row').nth(2).waitFor();
    await page.getByRole('table', { name: 'The traces' }).getByRole('link', { name: other }).waitFor();
    await axe('compare');
    await shot('compare');
    await page.goto(trace);
    await page.getByRole('treeitem').first().waitFor();
  });

  await step('a call is rated, and the rating is summed up', async () => {
    const scores = page.getByRole('group', { name: 'Scores' });
    await scores.getByRole('button', { name: 'Good' }).click();
    await scores.getByText('user_feedback').first().waitFor();
    page.once('dialog', (d) => d.accept('too <i>long</i>'));
    await scores.getByRole('button', { name: 'Bad' }).click();
    await scores.getByTitle(/too <i>long/).waitFor();
    const trace = page.url();
    await page.goto(`${base}/llm/quality?scores_by=service`);
    const row = page.getByRole('region', { name: 'Scores' }).getByRole('row', { name: /user_feedback/ });
    await row.getByRole('cell', { name: '0.000', exact: true }).waitFor();
    await axe('scores');
    await shot('scores');
    await page.goto(`${base}/llm/sessions?sort=cost`);
    const session = page.getByRole('region', { name: 'Sessions' }).locator('tbody tr').first();
    await session.getByRole('button', { expanded: false }).first().click();
    await page.getByRole('list', { name: /^Traces of/ }).getByRole('link').first().waitFor();
    await axe('sessions');
    await shot('sessions');
    await page.goto(trace);
  });

  await step('the trace leads to its logs and back', async () => {
    await page.getByRole('tab', { name: 'Logs' }).click();
    await page.getByRole('table', { name: 'Logs of the trace' }).getByText('request finished').waitFor();
    await page.getByRole('link', { name: 'Open in Logs' }).click();
    await page.waitForURL(/\/logs\?/);
    const lines = page.getByRole('region', { name: 'Lines' });
    await lines.getByText('request finished').first().click();
    const detail = page.getByRole('region', { name: 'Line detail' });
    await shot('logs-light');
    await axe('logs');
    await detail.getByRole('link', { name: /Open trace/ }).click();
    await page.waitForURL(/\/traces\/[0-9a-f]{32}/);
    await page.getByRole('treeitem').first().waitFor();
  });

  await step('10,000 spans scroll with few elements, and keys move between errors', async () => {
    await page.goto(`${base}/traces/${'e7'.repeat(16)}?from=now-1h&to=now`);
    await page.getByText('10 k', { exact: true }).first().waitFor();
    const tree = page.getByRole('tree', { name: 'Spans' });
    for (const share of [0.3, 0.6, 1]) await tree.evaluate((el, s) => el.scrollTo(0, el.scrollHeight * s), share);
    await page.getByRole('treeitem').filter({ hasText: /case 333\d/ }).first().waitFor();
    const elements = await page.evaluate(() => document.querySelectorAll('*').length);
    assert(elements < 1500, `${elements} elements`);
    await page.keyboard.press('e');
    await page.waitForFunction(() => document.querySelector('[aria-selected="true"][role="treeitem"] .err'));
    await shot('trace-10k-light');
  });

  await step('Metrics draws a query, and shows the server\'s words for a wrong one', async () => {
    await page.goto(`${base}/explore/metrics?expr=${encodeURIComponent('sum by (service_name) (rate(http_server_request_duration_seconds_count[5m]))')}`);
    await page.locator('[data-series="5"] canvas').waitFor();
    await page.getByRole('textbox', { name: 'PromQL' }).waitFor();
    await shot('metrics-light');
    await axe('metrics');
    await page.getByRole('textbox', { name: 'PromQL' }).click();
    await page.keyboard.press('Control+A');
    await page.keyboard.type('rate(up)');
    await page.keyboard.press('Escape');
    await page.getByRole('button', { name: 'Run' }).click();
    await page.getByRole('alert').filter({ hasText: 'expected type range vector' }).waitFor();
  });

  await step('Traces search finds errors by tag', async () => {
    await page.goto(`${base}/traces?service=gateway&from=now-2h&to=now`);
    await page.getByLabel('Tags').fill('error=true');
    await page.getByRole('button', { name: 'Search' }).click();
    await page.waitForURL(/tags=error/);
    const rows = page.getByRole('region', { name: 'Results' }).locator('tbody tr');
    await rows.first().waitFor();
    await shot('traces-light');
    await axe('traces');
  });

  await step('TraceQL finds traces by their structure, and says where a query is wrong', async () => {
    await page.getByLabel('TraceQL').fill('{ resource.service.name = "gateway" } >> { status = error } | count() >= 1');
    await page.getByRole('button', { name: 'Run' }).click();
    await page.waitForURL(/q=/);
    await page.getByRole('columnheader', { name: 'Matched' }).waitFor();
    await page.getByRole('region', { name: 'Results' }).locator('tbody tr.link').first().waitFor();
    await axe('traceql');
    await page.getByLabel('TraceQL').fill('{ name = }');
    await page.getByRole('button', { name: 'Run' }).click();
    await page.getByRole('alert').filter({ hasText: 'parse error at line 1, col 10' }).waitFor();
    await page.getByRole('button', { name: 'Clear' }).click();
    await page.getByLabel('Tags').waitFor();
  });

  await step('the service map shows who calls whom', async () => {
    await page.goto(`${base}/services?from=now-2h&to=now`);
    await page.getByRole('region', { name: 'Calls' }).getByRole('cell', { name: 'openai' }).first().waitFor();
    await page.getByRole('region', { name: 'Map' }).getByRole('link', { name: 'gateway', exact: true }).click();
    await page.waitForURL(/\/traces\?.*service=gateway/);
    await page.goBack();
    await axe('services');
    await shot('services-light');
  });

  await step('costs add up, a price is added, a budget is made and fills', async () => {
    await page.goto(`${base}/llm/costs`);
    const table = page.getByRole('region', { name: 'By model' });
    await table.getByRole('button', { name: /gpt/ }).first().waitFor();
    const spent = await page.getByRole('region', { name: 'Spent' }).innerText();
    assert.match(spent, /\$/);
    await page.getByRole('combobox', { name: 'Group by' }).selectOption('team');
    await page.waitForURL(/by=team/);
    await page.getByRole('region', { name: 'By team' }).waitFor();
    await until('fresh data', async () => (await page.locator('.stale').count()) === 0);
    await page.getByRole('region', { name: 'What moved' }).getByRole('cell', { name: /^\+\$/ }).first().waitFor();
    const worth = page.getByRole('region', { name: 'Cost of a success' });
    await worth.getByRole('combobox', { name: 'Unit' }).selectOption('session');
    await worth.getByRole('cell').first().waitFor();
    await page.getByRole('combobox', { name: 'What to export' }).selectOption('Calls as Parquet');
    await page.getByRole('button', { name: 'Export', exact: true }).click();
    const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: /^Download/ }).click()]);
    assert.equal(readFileSync(await file.path()).subarray(0, 4).toString(), 'PAR1');
    await axe('costs');
    await shot('costs');
    await page.goto(`${base}/llm/budgets`);
    const form = page.getByRole('region', { name: 'New budget' });
    await form.getByLabel('Name').fill('Everything <b>we</b> do');
    await form.getByLabel('Limit').fill('0');
    await form.getByRole('button', { name: 'Create' }).click();
    await form.getByRole('alert').filter({ hasText: 'limit must be above zero' }).waitFor();
    await form.getByLabel('Limit').fill('0.01');
    await form.getByLabel('Time zone').fill('Europe/Berlin');
    await form.getByRole('button', { name: 'Create' }).click();
    const row = page.getByRole('region', { name: 'Budgets' }).getByRole('row', { name: /Everything <b>we<\/b> do/ });
    await row.getByText('limit exceeded').waitFor();
    assert.equal(await row.getByRole('meter').getAttribute('aria-valuenow'), '100');
    await until('fresh data', async () => (await page.locator('.stale').count()) === 0);
    await axe('budgets');
    await shot('budgets');
    await page.goto(`${base}/llm/prices?q=gpt-4o-mini`);
    const prices = page.getByRole('region', { name: 'Prices' });
    await prices.getByRole('row', { name: /openai gpt-4o-mini 0.15 0.6/ }).first().waitFor();
    const add = page.getByRole('region', { name: 'Add a price' });
    await add.getByLabel('Provider').fill('acme');
    await add.getByLabel('Model').fill('house-1');
    await add.getByLabel('Input').fill('0.5');
    await add.getByRole('button', { name: 'Add' }).click();
    await prices.getByRole('row', { name: /acme house-1 0.5/ }).waitFor();
    await until('fresh data', async () => (await page.locator('.stale').count()) === 0);
    await axe('prices');
    await shot('prices');
  });

  await step('drift is checked on demand and says what moved', async () => {
    await page.goto(`${base}/llm/quality`);
    await page.getByRole('button', { name: 'Check now' }).click();
    const row = page.getByRole('region', { name: 'Models' }).getByRole('row', { name: /gpt-4o-mini/ }).first();
    await row.getByText(/normal|warning|critical/).waitFor();
    await until('fresh data', async () => (await page.locator('.stale').count()) === 0);
    await axe('quality');
    await shot('quality');
  });

  await step('Targets and rules say what is down and what fires', async () => {
    await until('the alert', async () => (await json('/prometheus/api/v1/alerts')).data.alerts.length);
    await page.goto(`${base}/targets`);
    await page.getByRole('cell', { name: 'http://127.0.0.1:1/metrics' }).waitFor();
    await page.getByText('Connection refused').waitFor();
    await axe('targets');
    await shot('targets');
    await page.goto(`${base}/rules?state=firing`);
    await page.getByText('nobody <b>is</b> gone').waitFor();
    assert.equal(await page.getByRole('region').count(), 1);
    await page.getByLabel('State').selectOption('');
    await page.getByText('storage_database_availability').waitFor();
    await axe('rules');
    await shot('rules');
  });

  await step('an alert is taken, silenced with what it would mute shown, and tested receivers answer', async () => {
    await page.goto(`${base}/#/alerts?receiver=ops`);
    await page.waitForURL(/\/alerts\?.*receiver=ops/);
    await page.getByRole('button', { name: 'Gone' }).click();
    await page.getByText('nobody <b>is</b> gone').first().waitFor();
    await page.getByRole('link', { name: 'Query when it fired' }).waitFor();
    page.once('dialog', (d) => (page.once('dialog', (n) => n.accept('looking')), d.accept('ann')));
    await page.getByRole('button', { name: 'Take' }).first().click();
    await page.getByText(/^ann, /).waitFor();
    await axe('alerts');
    await shot('alerts');
    await page.getByLabel('Matchers').fill('alertname=Gone');
    await page.keyboard.press('Enter');
    await page.getByRole('link', { name: 'Silence these' }).click();
    await page.getByText('Mutes 1 firing alert now').waitFor();
    await page.getByLabel('Why').fill('a test');
    await page.getByRole('button', { name: 'Silence', exact: true }).click();
    await page.getByRole('cell', { name: 'a test' }).waitFor();
    await axe('silences');
    await shot('silences');
    await page.goto(`${base}/alerts?state=suppressed`);
    await page.getByRole('button', { name: 'Gone' }).waitFor();
    await page.goto(`${base}/silences`);
    await page.getByRole('button', { name: 'End' }).click();
    await page.getByText('expired').waitFor();
    await page.goto(`${base}/contacts`);
    await page.getByText('no route sends to receiver "spare"').waitFor();
    await page.getByLabel('An alert with').fill('team=db');
    await page.getByRole('button', { name: 'goes where?' }).click();
    await page.getByText('→ db').waitFor();
    page.once('dialog', (d) => d.accept());
    await page.getByRole('button', { name: 'Send a test' }).first().click();
    await page.getByText('test of ops/webhook/0: address 127.0.0.1 is on this machine').waitFor();
    await page.getByRole('region', { name: 'Notifications' }).getByText('ops/webhook/0').first().waitFor();
    await axe('contacts');
    await shot('contacts');
    await page.goto(`${base}/slo`);
    await page.getByText(/No objectives|watched/).first().waitFor();
    await axe('slo');
    await page.goto(`${base}/rules?state=firing`);
    await page.getByRole('button', { name: 'Back-test' }).first().click();
    await page.getByText(/Would have fired 1 time in this range/).first().waitFor();
    // A rule is written, tried, and taken along as YAML.
    await page.getByRole('link', { name: 'Edit' }).first().click();
    const editor = page.getByRole('region', { name: 'Rule editor' });
    await editor.getByText(/Would have fired 1 time in this range/).waitFor();
    await editor.getByRole('img', { name: /1 firings/ }).first().waitFor();
    await editor.getByLabel('Severity').fill('page');
    await page.keyboard.press('Enter');
    await editor.getByText('severity: page').waitFor();
    await page.keyboard.press('Escape');
    await editor.getByLabel('For').fill('1000d');
    await page.keyboard.press('Enter');
    await editor.getByText(/Would have fired 0 times/).waitFor();
    await axe('rule editor');
    await shot('rule-editor');
  });

  await step('the keyboard leads through the pages, and dark is as readable as light', async () => {
    await page.goto(base + '/');
    await page.keyboard.press('.');
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
    for (const [key, path, name] of [['l', '/llm', 'llm'], ['t', '/traces', 'traces'], ['o', '/logs', 'logs'], ['m', '/explore/metrics', 'metrics'], ['h', '/', 'home']]) {
      await page.keyboard.press('g');
      await page.keyboard.press(key);
      await page.waitForURL((u) => u.pathname === path);
      await page.waitForLoadState('networkidle');
      await shot(`${name}-dark`);
      await axe(`${name} dark`);
    }
  });

  await step('Ctrl+K goes to a service, and j opens log lines', async () => {
    await page.keyboard.press('Control+k');
    const search = page.getByRole('searchbox', { name: 'Page, service, metric or trace id' });
    await search.fill('evalu');
    await page.getByRole('button', { name: 'evaluator service' }).waitFor();
    await axe('palette');
    await page.keyboard.press('Enter');
    await page.waitForURL(/\/traces\?service=evaluator/);
    // Keys typed while the palette closes are still its own.
    await search.waitFor({ state: 'hidden' });
    await page.keyboard.press('g');
    await page.keyboard.press('o');
    await page.waitForURL((u) => u.pathname === '/logs');
    await page.getByRole('region', { name: 'Lines' }).getByRole('button').first().waitFor();
    await page.keyboard.press('j');
    await page.keyboard.press('j');
    await page.getByRole('region', { name: 'Line detail' }).waitFor();
    await page.keyboard.press('Escape');
    await page.getByRole('region', { name: 'Line detail' }).waitFor({ state: 'detached' });
  });

  await step('what users wrote stays text', async () => {
    const evil = '<img src=x onerror="document.title=1"><a href="javascript:1">x</a>';
    const now = BigInt(Date.now()) * 1_000_000n;
    const span = { traceId: 'ab'.repeat(16), spanId: 'cd'.repeat(8), name: evil, kind: 3, startTimeUnixNano: String(now), endTimeUnixNano: String(now + 5_000_000n), attributes: [['gen_ai.operation.name', 'chat'], ['gen_ai.request.model', evil], ['gen_ai.input.messages', JSON.stringify([{ role: 'user', parts: [{ type: 'text', content: evil }] }])]].map(([key, v]) => ({ key, value: { stringValue: v } })) };
    const sent = await fetch(base + '/v1/traces', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ resourceSpans: [{ resource: { attributes: [{ key: 'service.name', value: { stringValue: evil } }] }, scopeSpans: [{ spans: [span] }] }] }) });
    assert.equal(sent.status, 200);
    await page.goto(`${base}/traces/${'ab'.repeat(16)}`);
    await page.getByRole('list', { name: 'Conversation' }).getByText(evil).waitFor();
    assert.equal(await page.locator('main img').count(), 0);
    assert.match(await page.title(), /Trace abababab/);
  });

  await step('nothing failed in the page and nothing left the origin', async () => assert.deepEqual(problems, []));
} catch (e) {
  failed++;
  console.log(`not ok - ${e.stack}`);
} finally {
  await browser?.close();
  server.kill('SIGTERM');
  await new Promise((r) => (server.exitCode === null ? server.once('exit', r) : r()));
  rmSync(config, { recursive: true, force: true });
  rmSync(data, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
