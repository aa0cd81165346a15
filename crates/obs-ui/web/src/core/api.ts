// The client of the server's APIs.

/** An error with the server's own words. */
export class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** Fetches JSON; throws ApiError with the server's message. */
export async function get<T>(path: string, params: Record<string, string | number | string[] | undefined> = {}, signal?: AbortSignal, headers: Record<string, string> = {}): Promise<T> {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (Array.isArray(value)) value.forEach((v) => query.append(name, v));
    else if (value !== undefined && value !== '') query.set(name, String(value));
  }
  const text = query.toString();
  const response = await fetch(text ? `${path}?${text}` : path, { headers, ...(signal ? { signal } : {}) });
  const body = await response.text();
  if (!response.ok) {
    let message = body.trim();
    try {
      const json = JSON.parse(body);
      message = json.error ?? json.message ?? json.errors?.[0]?.msg ?? message;
    } catch {
      // Loki answers in plain text.
    }
    throw new ApiError(response.status, message || response.statusText);
  }
  return JSON.parse(body) as T;
}

export interface Sums {
  requests: number;
  errors: number;
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

export type Part =
  | { type: 'text'; text: string }
  | { type: 'reasoning'; text: string }
  | { type: 'tool_call'; id: string; name: string; arguments: string }
  | { type: 'tool_result'; id: string; content: string }
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
