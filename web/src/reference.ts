// The page to try the HTTP interface: every address of /openapi.json with its parameters, and a button that asks it.

import "./style.css";
import { token, useToken } from "./api";
import { el, make, pill, put } from "./dom";

interface Schema {
  type?: string | string[];
  enum?: string[];
  default?: unknown;
  examples?: unknown[];
  properties?: Record<string, Schema>;
  required?: string[];
  [other: string]: unknown;
}

interface Parameter {
  name: string;
  in: "query" | "path" | "header";
  description: string;
  required?: boolean;
  schema: Schema;
}

interface Operation {
  operationId: string;
  summary: string;
  parameters?: Parameter[];
  requestBody?: { content: Record<string, { schema: Schema }> };
  responses: Record<string, { description: string; content: Record<string, { schema: Schema }> }>;
}

interface Document {
  info: { title: string; description: string };
  paths: Record<string, Record<string, Operation>>;
}

const SHOWN_CHARACTERS = 200_000;
const SHOWN_OF_A_STREAM_MS = 3000; // an answer without end is cut here

document.documentElement.dataset.theme =
  localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
el<HTMLInputElement>("token").value = token();
el("token").addEventListener("change", () => useToken(el<HTMLInputElement>("token").value.trim()));

async function start(): Promise<void> {
  try {
    const description = (await (await fetch("/openapi.json")).json()) as Document;
    put(el("about"), description.info.description.replaceAll("`", ""));
    for (const [path, methods] of Object.entries(description.paths)) {
      for (const [method, operation] of Object.entries(methods)) el("operations").append(card(path, method, operation));
    }
  } catch {
    put(el("about"), "The daemon does not answer. Load this page again when it runs.");
  }
}

function card(path: string, method: string, operation: Operation): HTMLElement {
  const node = make("details", "panel operation");
  node.id = operation.operationId;
  const head = make("summary");
  head.append(make("b", "", method.toUpperCase()), make("code", "", path), make("span", "count", operation.summary));
  const form = make("form", "parameters");
  const fields = (operation.parameters ?? []).map((parameter) => {
    const field = fieldOf(operation.operationId, parameter);
    form.append(field.label, field.input, make("small", "count", parameter.description));
    return { parameter, input: field.input };
  });
  let body: HTMLTextAreaElement | null = null;
  const schema = operation.requestBody?.content["application/json"]?.schema;
  if (schema) {
    body = make("textarea");
    body.id = `${operation.operationId}-body`;
    body.rows = 5;
    body.spellcheck = false;
    body.value = JSON.stringify(sample(schema), null, 2);
    const label = make("label", "", "body");
    label.htmlFor = body.id;
    form.append(label, body, make("small", "count", "JSON"));
  }
  const button = make("button", "primary", "Send");
  const status = make("span", "pill");
  status.hidden = true;
  const curl = make("code", "curl");
  const answer = make("pre", "answer");
  answer.hidden = true;
  answer.tabIndex = 0;
  form.append(button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void send(path, method, fields, body, { status, curl, answer, button });
  });
  const answers = make("ul", "count");
  for (const [code, response] of Object.entries(operation.responses)) {
    answers.append(make("li", "", `${code}: ${response.description} (${Object.keys(response.content).join(", ")})`));
  }
  node.append(head, form, status, curl, answer, answers);
  return node;
}

function fieldOf(operation: string, { name, required, schema }: Parameter): { label: HTMLLabelElement; input: HTMLInputElement | HTMLSelectElement } {
  const label = make("label", "", required ? `${name} *` : name);
  const choices = schema.enum ?? (schema.type === "boolean" ? ["true", "false"] : null);
  const input = choices ? make("select") : make("input");
  input.id = label.htmlFor = `${operation}-${name}`;
  input.required = Boolean(required);
  if (input instanceof HTMLSelectElement) input.append(new Option("", ""), ...choices!.map((it) => new Option(it, it)));
  else {
    input.placeholder = String(schema.default ?? "");
    if (required) input.value = String(schema.examples?.[0] ?? "");
  }
  return { label, input };
}

function sample(schema: Schema): unknown {
  if (schema.examples) return schema.examples[0];
  if (schema.enum) return schema.enum[0];
  if (schema.default !== undefined) return schema.default;
  const kind = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (kind === "object") {
    return Object.fromEntries((schema.required ?? []).map((name) => [name, sample(schema.properties?.[name] ?? {})]));
  }
  if (kind === "array") return [sample((schema.items as Schema) ?? {})];
  return kind === "integer" || kind === "number" ? 0 : "";
}

async function send(
  path: string,
  method: string,
  fields: { parameter: Parameter; input: HTMLInputElement | HTMLSelectElement }[],
  body: HTMLTextAreaElement | null,
  shown: { status: HTMLElement; curl: HTMLElement; answer: HTMLElement; button: HTMLButtonElement },
): Promise<void> {
  const query = new URLSearchParams();
  const headers: Record<string, string> = {};
  let address = path;
  for (const { parameter, input } of fields) {
    if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value && parameter.in === "query") query.set(parameter.name, input.value);
    else if (input.value) headers[parameter.name] = input.value;
  }
  if (query.size) address += `?${query}`;
  if (body) headers["Content-Type"] = "application/json";
  const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
  const told = Object.entries(token() ? { ...headers, Authorization: "Bearer SECRET" } : headers);
  const options = [
    ...(method === "get" ? [] : ["-X", method.toUpperCase()]),
    ...told.flatMap(([name, value]) => ["-H", quoted(`${name}: ${value}`)]),
    ...(body ? ["-d", quoted(body.value)] : []),
  ];
  put(shown.curl, ["curl", ...options, quoted(location.origin + address)].join(" "));
  if (token()) headers.Authorization = `Bearer ${token()}`;
  shown.button.disabled = true;
  shown.answer.hidden = false;
  put(shown.answer, "…");
  const cut = new AbortController();
  try {
    const response = await fetch(address, { method: method.toUpperCase(), headers, body: body?.value ?? null, signal: cut.signal });
    pill(shown.status, response.ok ? "good" : "bad", `${response.status} ${response.statusText}`);
    const endless = response.headers.get("Content-Type")?.startsWith("text/event-stream");
    const timer = endless ? setTimeout(() => cut.abort(), SHOWN_OF_A_STREAM_MS) : 0;
    put(shown.answer, pretty(await textOf(response)));
    clearTimeout(timer);
  } catch {
    pill(shown.status, "bad", "no answer");
    put(shown.answer, "The daemon does not answer.");
  }
  shown.button.disabled = false;
}

/** The text of an answer as far as it comes and as much as is shown. */
async function textOf(response: Response): Promise<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (text.length < SHOWN_CHARACTERS) {
      const { done, value } = await reader.read();
      if (done) return text;
      text += value;
    }
  } catch {
    return `${text}\n… and so on without end`;
  }
  await reader.cancel();
  return `${text}\n… and more`;
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

void start();
