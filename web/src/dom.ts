// Small helpers for elements, numbers and times; nothing here knows the daemon.

export const DASH = "–";
export const whole = new Intl.NumberFormat("en");

export function el<T extends HTMLElement = HTMLElement>(id: string): T {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no #${id}`);
  return node as T;
}

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text?: string,
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function put(node: Element, text: string): void {
  if (node.textContent !== text) node.textContent = text;
}

export type Look = "good" | "warn" | "bad" | "waiting" | "";

export function pill(node: HTMLElement, look: Look, text: string): void {
  node.hidden = false;
  node.dataset.state = look;
  put(node, text);
}

export function badge(look: Look, text: string): HTMLElement {
  const node = make("span", "pill", text);
  node.dataset.state = look;
  return node;
}

export function pairs(list: HTMLElement, entries: readonly (readonly [string, string])[]): void {
  const groups = entries.map(([name, value]) => {
    const group = make("div");
    group.append(make("dt", "", name), make("dd", "", value));
    return group;
  });
  list.replaceChildren(...groups);
}

/** How many decimals a price has on a grid of `tickSize`; undefined where the grid is not known. */
export function decimals(tickSize: number | null | undefined): number | undefined {
  return tickSize ? Math.max(0, Math.min(8, Math.ceil(-Math.log10(tickSize) - 1e-9))) : undefined;
}

export function price(value: number | null | undefined, tickSize?: number | null): string {
  if (value === undefined || value === null) return DASH;
  const digits = decimals(tickSize);
  const [least, most] = digits === undefined ? [2, Math.abs(value) < 10 ? 6 : 2] : [digits, digits];
  return value.toLocaleString("en", { minimumFractionDigits: least, maximumFractionDigits: most });
}

export function age(ms: number): string {
  if (ms < 1000) return "now";
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function orDash<T>(value: T | null | undefined, text: (value: T) => string): string {
  return value === null || value === undefined ? DASH : text(value);
}

/** Time of day in the reader's zone; with the day where that is not today. */
export function clockTime(ms: number): string {
  const at = new Date(ms);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const today = at.toDateString() === new Date().toDateString();
  return today ? time : `${at.toLocaleDateString([], { day: "numeric", month: "short" })} ${time}`;
}

/** Begin and end of a span in words: with the date where one of them is not of today. */
export function spanText(fromMs: number, toMs: number): string {
  const isToday = (ms: number): boolean => new Date(ms).toDateString() === new Date().toDateString();
  const dated = !isToday(fromMs) || !isToday(toMs);
  const shown = (ms: number): string =>
    dated ? `${new Date(ms).toLocaleDateString([], { day: "numeric", month: "short" })} ${clockTime(ms)}` : clockTime(ms);
  return `${shown(fromMs)} to ${shown(toMs)}`;
}

/** Call `work` once in the next frame, however often it is asked for before. */
export function inNextFrame(work: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
