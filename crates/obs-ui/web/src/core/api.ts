// The client of the server's APIs.

/** An error with the server's own words. */
export class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** Returns what an error says. */
export const errorText = (x: unknown) => (x instanceof Error ? x.message : String(x));

/** Fetches JSON; throws ApiError with the server's message. */
export async function get<T>(path: string, params: Record<string, string | number | string[] | undefined> = {}, signal?: AbortSignal, headers: Record<string, string> = {}): Promise<T> {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (Array.isArray(value)) value.forEach((v) => query.append(name, v));
    else if (value !== undefined && value !== '') query.set(name, String(value));
  }
  const text = query.toString();
  return read<T>(await fetch(text ? `${path}?${text}` : path, { headers, ...(signal ? { signal } : {}) }));
}

async function read<T>(response: Response): Promise<T> {
  const body = await response.text();
  if (!response.ok) {
    let message = body.trim();
    try {
      const json = JSON.parse(body);
      message = json.error?.message ?? json.error ?? json.message ?? json.errors?.[0]?.msg ?? message;
    } catch {
      // Loki answers in plain text.
    }
    throw new ApiError(response.status, message || response.statusText);
  }
  return (body ? JSON.parse(body) : null) as T;
}

/** Sends JSON; throws ApiError with the server's message. */
export async function send<T>(path: string, method: 'POST' | 'PUT' | 'DELETE', body?: unknown, signal?: AbortSignal): Promise<T> {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  return read<T>(await fetch(path, { method, signal, headers: { 'Content-Type': 'application/json' }, ...content }));
}

/** What a set of calls amounts to; amounts are decimal texts in USD. */
export interface Totals {
  total_cost: string;
  input_cost: string;
  output_cost: string;
  requests: number;
  errors: number;
  input_tokens: number;
  output_tokens: number;
  total_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
  average_cost_per_request: string;
  unpriced_requests: number;
  ambiguous_requests: number;
  estimated_requests: number;
  uncertain_cost: string;
  reported_cost: string;
  reported_difference: string;
}

export type CostGroup = Totals & { percentage: number | null; growth_percent?: number | null } & Record<string, unknown>;

export interface Budget {
  id: string;
  name: string;
  limit: string;
  unit: 'usd' | 'tokens' | 'requests';
  scope: Record<string, string>;
  period: string;
  time_zone: string;
  hard: boolean;
  warning: number;
  current_spend: string;
  reserved: string;
  remaining: string;
  utilization_percent: number;
  projected_spend: string | null;
  projected_utilization_percent: number | null;
  burn_rate: number | null;
  exhausted_at: string | null;
  period_end: string;
  state: string;
  severity: string;
}

export interface Price {
  id: string;
  provider: string;
  model: string;
  region?: string;
  from?: string;
  to?: string;
  hours?: string;
  input?: string;
  output?: string;
  cache_read?: string;
  cache_write?: string;
  tiers?: { above_input_tokens: number; marginal?: boolean; input?: string; output?: string }[];
  modes?: Record<string, { input?: string; output?: string }>;
  source?: string;
}

export interface Sums {
  requests: number;
  errors: number;
  /** Answers that a filter or the model withheld. */
  refusals: number;
  unpriced: number;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  cost_usd: string;
  p50_ms: number | null;
  p95_ms: number | null;
  ttft_p50_ms: number | null;
  ttft_p95_ms: number | null;
}

export interface Summary {
  total: Sums;
  times: number[];
  step_seconds: number;
  groups: { name: string; sums: Sums; requests: number[]; tokens: number[]; cost: string[] }[];
  errors: { type: string; count: number; last_ms: number }[];
}

export interface Call {
  ts_ms: number;
  trace_id: string;
  span_id: string;
  service: string;
  provider: string;
  model: string;
  request_model: string;
  response_model: string;
  operation: string;
  status: string;
  error_type: string;
  finish_reason: string;
  user_id: string;
  session_id: string;
  prompt_name: string;
  prompt_version: string;
  input_tokens: number;
  output_tokens: number;
  cache_read_tokens: number;
  cache_write_tokens: number;
  reasoning_tokens: number;
  input_total: number;
  output_total: number;
  duration_ms: number;
  time_to_first_token_ms: number | null;
  cost_usd: string | null;
  cost_state: string;
  price_id: string | null;
  dialect: string;
}

export interface Calls {
  total: number;
  calls: Call[];
  facets: Record<string, Record<string, number>>;
}

/** What was said in a call, in a line, and how it was judged. */
export interface Preview {
  input: string;
  output: string;
  scores: { name: string; value: number | null; label: string; explanation: string; source: string }[];
}

export type Part =
  | { type: 'text'; text: string }
  | { type: 'reasoning'; text: string }
  | { type: 'tool_call'; id: string; name: string; arguments: string }
  | { type: 'tool_result'; id: string; content: string }
  | { type: 'media'; modality: string; mime_type: string; uri?: string; file_id?: string; href?: string }
  | { type: 'other'; kind: string; detail: string };

export interface Message {
  role: string;
  parts: Part[];
  finish_reason: string;
}

export interface SpanDetail {
  trace_id: string;
  span_id: string;
  name: string;
  service: string;
  kind: string;
  status: string;
  status_message: string;
  start_ms: number;
  duration_ms: number;
  scope: { name: string; version: string };
  attributes: [string, string][];
  resource: [string, string][];
  events: { name: string; offset_ns: number; attributes: [string, string][] }[];
  call: Call | null;
  conversation: { input: Message[]; output: Message[]; tools: string[] };
}

export interface PromSeries {
  metric: Record<string, string>;
  values?: [number, string][];
  value?: [number, string];
}

export interface PromResult {
  data: { resultType: string; result: PromSeries[] };
  warnings?: string[];
  infos?: string[];
}

export interface LokiStreams {
  data: { resultType: string; result: { stream: Record<string, string>; values: [string, string, { structuredMetadata?: Record<string, string>; parsed?: Record<string, string> }?][] }[] };
}
