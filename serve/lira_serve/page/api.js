// Requests to the server that this page came from. All addresses are relative, so a proxy may add a path.
import { serverSentEvents } from "./sse.js";

const KEY = "lira-key"; // of this tab only, and gone with it

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

export class ServerError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = 0 } = {}) {
    super(message);
    this.status = status; // 0: the server did not answer, or the answer broke off
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter; // seconds
  }
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.");
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // a proxy's own error page
  }
  throw new ServerError(said.message || `The server answered ${response.status}.`, {
    status: response.status,
    code: said.code ?? null,
    param: said.param ?? null,
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
  });
}

// {id, lira: {target, precision, tasks, context, max_tiles}} of the served model.
export async function servedModel() {
  const list = await (await request("v1/models")).json();
  return list.data[0];
}

export async function isReady() {
  try {
    return (await fetch("health/ready", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

// Sends a chat request; yields {waiting: true} while the question waits its turn, and each chunk, parsed.
export async function* ask(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const { event, data, comment } of serverSentEvents(response.body)) {
      if (comment !== undefined) {
        yield { waiting: true };
        continue;
      }
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (event === "error" || chunk.error) {
        const { message, param, code, type } = chunk.error;
        const status = code === "busy" ? 503 : type === "invalid_request_error" ? 400 : 500;
        throw new ServerError(message, { status, param, code });
      }
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError("The server broke off in the middle of the answer.");
  }
  throw new ServerError("The server broke off in the middle of the answer.");
}
