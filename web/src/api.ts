// Asks the daemon over HTTP. The token, where one is needed, stays in this tab.

export class Unauthorized extends Error {}

/** An answer that is an error; `code` is the daemon's word for it. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

let secret = sessionStorage.getItem("token") ?? "";

export const token = (): string => secret;

export function useToken(value: string): void {
  secret = value;
  sessionStorage.setItem("token", value);
}

export function forgetToken(): void {
  secret = "";
  sessionStorage.removeItem("token");
}

/** Returns the answer; 503 counts as one, because readiness is told that way. */
export async function ask<T>(path: string): Promise<T> {
  const headers: HeadersInit = secret ? { Authorization: `Bearer ${secret}` } : {};
  const response = await fetch(path, { headers, signal: AbortSignal.timeout(8000) });
  if (response.status === 401) throw new Unauthorized("this daemon asks for a token");
  const body = await response.json().catch(() => ({}));
  if (!response.ok && !(response.status === 503 && "ready" in body)) {
    const { code = "error", message = `the daemon answers ${response.status}` } = body.error ?? {};
    throw new Refused(response.status, code, message);
  }
  return body as T;
}
