// The instruments: searched, sorted, live. Only the rows in view exist, so thousands scroll smoothly.

import { age, DASH, el, inNextFrame, make, orDash, price, put, whole } from "./dom";
import { changePercent, serverNow, state, type Listed } from "./state";
import type { Quote } from "./types";

const ROW_PX = 36;
const MARGIN_ROWS = 10;
const STALE_AFTER_MS = 60_000;

interface Column {
  id: string;
  label: string;
  number?: boolean;
  minor?: boolean;
  of: (item: Listed) => string | number | null | undefined;
}

const quoteOf = (item: Listed): Quote | undefined => state.quotes.get(item.key);
const COLUMNS: Column[] = [
  { id: "key", label: "Instrument", of: (item) => item.key },
  { id: "price", label: "Last", number: true, of: (item) => quoteOf(item)?.last_price },
  { id: "change", label: "Change", number: true, of: (item) => changePercent(quoteOf(item)) },
  { id: "spark", label: "Last minute", minor: true, of: (item) => item.key },
  { id: "bid", label: "Bid", number: true, minor: true, of: (item) => quoteOf(item)?.bid },
  { id: "ask", label: "Ask", number: true, minor: true, of: (item) => quoteOf(item)?.ask },
  { id: "volume", label: "Volume", number: true, minor: true, of: (item) => quoteOf(item)?.cumulative_volume },
  { id: "age", label: "Age", number: true, of: (item) => quoteOf(item)?.ts_ms },
  { id: "source", label: "Source", minor: true, of: (item) => quoteOf(item)?.src ?? item.provider },
];

const sort = { column: "key", down: false };
let shown: Listed[] = [];
let selected = "";
const pool = new Map<string, HTMLTableRowElement>();
let drawnWindow = "";
let onVisible: () => void = () => {};
let onChosen: (item: Listed) => void = () => {};

export const requestDraw = inNextFrame(draw);
export const visibleKeys = (): string[] => [...pool.keys()];

export function setUpTable(visibleChanged: () => void, chosen: (item: Listed) => void): void {
  onVisible = visibleChanged;
  onChosen = chosen;
  for (const column of COLUMNS) el("columns").append(head(column));
  const scroller = el("scroller");
  scroller.addEventListener("scroll", requestDraw, { passive: true });
  addEventListener("resize", requestDraw);
  for (const id of ["search", "exchange"]) {
    el(id).addEventListener("input", () => {
      scroller.scrollTop = 0;
      arrange();
    });
  }
  scroller.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      move(step);
    } else if (event.key === "Enter") {
      const item = shown.find((one) => one.key === selected);
      if (item) onChosen(item);
    }
  });
  el("rows").addEventListener("click", (event) => {
    const row = (event.target as Element).closest<HTMLTableRowElement>("tr[data-key]");
    const item = row && shown.find((one) => one.key === row.dataset.key);
    if (item) {
      select(item.key);
      onChosen(item);
    }
  });
  setInterval(requestDraw, 1000); // ages
  setInterval(() => {
    if (!["key", "source", "spark"].includes(sort.column)) arrange();
  }, 3000);
}

export function showInstruments(items: Listed[]): void {
  state.instruments = items;
  const picker = el<HTMLSelectElement>("exchange");
  const chosen = picker.value;
  const exchanges = [...new Set(items.map((item) => item.exchange))].sort();
  picker.replaceChildren(new Option("All exchanges", ""), ...exchanges.map((name) => new Option(name, name)));
  picker.value = exchanges.includes(chosen) ? chosen : "";
  arrange();
}

export function select(key: string): void {
  selected = key;
  drawnWindow = "";
  requestDraw();
}

export function flash(keys: string[]): void {
  const cells = keys.flatMap((key) => {
    const cell = pool.get(key)?.cells[1];
    return cell ? [[key, cell] as const] : [];
  });
  for (const [, cell] of cells) cell.classList.remove("went-up", "went-down");
  void el("rows").offsetWidth; // restarts the animations
  for (const [key, cell] of cells) cell.classList.add((state.direction.get(key) ?? 0) > 0 ? "went-up" : "went-down");
}

function head(column: Column): HTMLElement {
  const node = make("th", `${column.number ? "number " : ""}${column.minor ? "minor" : ""}`.trim());
  node.scope = "col";
  node.dataset.column = column.id;
  const button = make("button", "", column.label);
  button.type = "button";
  button.addEventListener("click", () => {
    const same = sort.column === column.id;
    sort.down = same ? !sort.down : Boolean(column.number);
    sort.column = column.id;
    arrange();
  });
  node.append(button);
  return node;
}

function arrange(): void {
  const words = el<HTMLInputElement>("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const exchange = el<HTMLSelectElement>("exchange").value;
  const found = state.instruments.filter(
    (item) => (!exchange || item.exchange === exchange) && words.every((word) => item.searchable.includes(word)),
  );
  const column = COLUMNS.find((candidate) => candidate.id === sort.column) ?? COLUMNS[0]!;
  // Age sorts by time, so the other way round; what is unknown always stands last.
  const sign = (sort.down ? -1 : 1) * (column.id === "age" ? -1 : 1);
  const values = new Map(found.map((item) => [item, column.of(item)]));
  const byKey = (a: Listed, b: Listed): number => (a.key < b.key ? -1 : 1);
  found.sort((a, b) => {
    const left = values.get(a) ?? undefined;
    const right = values.get(b) ?? undefined;
    if (left === undefined || right === undefined) {
      return Number(left === undefined) - Number(right === undefined) || byKey(a, b);
    }
    return left === right ? byKey(a, b) : (left < right ? -1 : 1) * sign;
  });
  shown = found;
  for (const node of el("columns").children as HTMLCollectionOf<HTMLElement>) {
    const active = node.dataset.column === sort.column;
    node.ariaSort = active ? (sort.down ? "descending" : "ascending") : "none";
    const label = COLUMNS.find((candidate) => candidate.id === node.dataset.column)?.label ?? "";
    put(node.firstElementChild!, active ? `${label} ${sort.down ? "↓" : "↑"}` : label);
  }
  const all = state.instruments.length;
  put(el("count"), shown.length === all ? whole.format(all) : `${whole.format(shown.length)} of ${whole.format(all)}`);
  el("table-hint").hidden = shown.length > 0;
  put(
    el("table-hint"),
    all ? "Nothing matches the search." : "No instruments are mapped. Run: python data_migration/populate_instrument_mappings.py",
  );
  draw();
}

function move(step: number): void {
  const at = shown.findIndex((item) => item.key === selected);
  const next = shown[Math.max(0, Math.min(shown.length - 1, at < 0 ? 0 : at + step))];
  if (!next) return;
  select(next.key);
  const scroller = el("scroller");
  const top = shown.indexOf(next) * ROW_PX;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + 2 * ROW_PX > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + 2 * ROW_PX - scroller.clientHeight;
}

function draw(): void {
  const scroller = el("scroller");
  const first = Math.max(0, Math.floor(scroller.scrollTop / ROW_PX) - MARGIN_ROWS);
  const last = Math.min(shown.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW_PX) + MARGIN_ROWS);
  const visible = shown.slice(first, last);
  const keys = visible.map((item) => item.key).join("\n");
  if (keys !== drawnWindow || !keys) {
    drawnWindow = keys;
    const rows = visible.map((item) => pool.get(item.key) ?? newRow(item));
    pool.clear();
    visible.forEach((item, index) => pool.set(item.key, rows[index]!));
    el("rows").replaceChildren(spacer(first), ...rows, spacer(shown.length - last));
  }
  for (const item of visible) fillRow(pool.get(item.key)!, item);
  onVisible();
}

function spacer(count: number): HTMLElement {
  const row = make("tr", "spacer");
  const cell = make("td");
  cell.colSpan = COLUMNS.length;
  cell.style.height = `${count * ROW_PX}px`;
  row.append(cell);
  row.hidden = count === 0;
  return row;
}

function newRow(item: Listed): HTMLTableRowElement {
  const row = make("tr");
  row.dataset.key = item.key;
  for (const column of COLUMNS) {
    row.append(make("td", `${column.number ? "number " : ""}${column.minor ? "minor" : ""}`.trim()));
  }
  const [name, last, , spark] = row.cells;
  name!.className = "name";
  name!.append(make("span", "", item.key), make("small", "", item.name === item.symbol ? "" : item.name));
  name!.title = item.name;
  last!.classList.add("price");
  const canvas = make("canvas");
  canvas.width = 96;
  canvas.height = 24;
  canvas.setAttribute("aria-hidden", "true");
  spark!.append(canvas);
  return row;
}

function fillRow(row: HTMLTableRowElement, item: Listed): void {
  const values = quoteOf(item);
  const [, last, moved, spark, bid, ask, volume, time, source] = row.cells;
  row.classList.toggle("selected", item.key === selected);
  put(last!, price(values?.last_price, item.tick_size));
  const percent = changePercent(values);
  put(moved!, percent === undefined ? DASH : `${percent < 0 ? "▼" : percent > 0 ? "▲" : ""} ${Math.abs(percent).toFixed(2)} %`);
  moved!.classList.toggle("rise", (percent ?? 0) > 0);
  moved!.classList.toggle("fall", (percent ?? 0) < 0);
  drawSpark(spark!.firstElementChild as HTMLCanvasElement, state.sparks.get(item.key) ?? []);
  put(bid!, price(values?.bid, item.tick_size));
  put(ask!, price(values?.ask, item.tick_size));
  put(volume!, orDash(values?.cumulative_volume, whole.format));
  const olderMs = values ? serverNow() - values.ts_ms : undefined;
  put(time!, orDash(olderMs, (ms) => age(Math.max(0, ms))));
  time!.classList.toggle("quiet", olderMs === undefined || olderMs > STALE_AFTER_MS);
  put(source!, `${values?.src ?? item.provider ?? DASH}${values?.flags?.includes("delayed") ? " delayed" : ""}`);
}

function drawSpark(canvas: HTMLCanvasElement, points: number[]): void {
  const context = canvas.getContext("2d");
  const drawn = `${points.length}:${points.at(-1) ?? ""}`;
  if (!context || canvas.dataset.drawn === drawn) return;
  canvas.dataset.drawn = drawn;
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (points.length < 2) return;
  const low = Math.min(...points);
  const span = Math.max(...points) - low || 1;
  const style = getComputedStyle(canvas);
  context.strokeStyle = style.getPropertyValue(points.at(-1)! >= points[0]! ? "--up" : "--down");
  context.lineWidth = 1.5;
  context.beginPath();
  points.forEach((value, index) => {
    const x = (index / (points.length - 1)) * (canvas.width - 4) + 2;
    const y = canvas.height - 3 - ((value - low) / span) * (canvas.height - 6);
    if (index) context.lineTo(x, y);
    else context.moveTo(x, y);
  });
  context.stroke();
}
