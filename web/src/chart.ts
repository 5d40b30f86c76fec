// The candle chart of one instrument: its past over HTTP, its live bar over the socket, gaps and switches as marks.

import {
  CandlestickSeries,
  createChart,
  createSeriesMarkers,
  HistogramSeries,
  TickMarkType,
  type CandlestickData,
  type IChartApi,
  type ISeriesApi,
  type ISeriesMarkersPluginApi,
  type SeriesMarker,
  type Time,
  type UTCTimestamp,
} from "lightweight-charts";

import { ask, Refused } from "./api";
import { decimals, el, make, price, put } from "./dom";
import { eventsOf, type MarketEvent } from "./events";
import type { Socket } from "./socket";
import { changePercent, state, type Listed } from "./state";
import type { Candle, History, Message, Route } from "./types";

const INTERVALS = [
  { id: "1m", socket: "1", label: "1m" },
  { id: "5m", socket: "5", label: "5m" },
  { id: "15m", socket: "15", label: "15m" },
  { id: "1h", socket: "60", label: "1h" },
  { id: "1d", socket: "1D", label: "1d" },
] as const;
const BARS = 400;
const MARKED: Record<string, { shape: "circle" | "square" | "arrowDown"; color: string }> = {
  gap: { shape: "square", color: "--warn" },
  stale: { shape: "square", color: "--down" },
  switched: { shape: "arrowDown", color: "--accent" },
};

export class ChartPanel {
  private chart: IChartApi | null = null;
  private candles: ISeriesApi<"Candlestick"> | null = null;
  private volumes: ISeriesApi<"Histogram"> | null = null;
  private markers: ISeriesMarkersPluginApi<Time> | null = null;
  private item: Listed | null = null;
  private interval: (typeof INTERVALS)[number] = INTERVALS[0];
  private newestS = 0;
  private firstS = 0;
  private bars = new Map<number, Candle>();
  private early: Candle[] = []; // live bars that came before the past
  private loading = false;
  private past: MarketEvent[] = []; // switches and gaps from before this page was opened
  private round = 0;
  onClosed: () => void = () => {};

  constructor(private readonly socket: Socket) {
    socket.listen((message) => this.take(message));
    const buttons = INTERVALS.map((interval) => {
      const button = make("button", "", interval.label);
      button.type = "button";
      button.dataset.interval = interval.id;
      button.addEventListener("click", () => {
        this.interval = interval;
        if (this.item) void this.load();
      });
      return button;
    });
    el("intervals").append(...buttons);
    el("chart-close").addEventListener("click", () => this.close());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  get key(): string {
    return this.item?.key ?? "";
  }

  show(item: Listed): void {
    this.item = item;
    el("chart-panel").hidden = false;
    put(el("chart-title"), item.key);
    put(el("chart-name"), item.name === item.symbol ? "" : item.name);
    this.showPrice();
    void this.load();
  }

  close(): void {
    this.item = null;
    this.round += 1;
    this.socket.watchChart(null);
    el("chart-panel").hidden = true;
    this.onClosed();
  }

  /** Read everything again, as after a connection that was away. */
  refresh(): void {
    if (this.item) void this.load();
  }

  showPrice(): void {
    if (!this.item) return;
    const quote = state.quotes.get(this.item.key);
    put(el("chart-price"), price(quote?.last_price, this.item.tick_size));
    const percent = changePercent(quote);
    const node = el("chart-change");
    put(node, percent === undefined ? "" : `${percent < 0 ? "▼" : "▲"} ${Math.abs(percent).toFixed(2)} %`);
    node.className = percent === undefined ? "" : percent < 0 ? "fall" : "rise";
  }

  /** Take the colours of the page's theme. */
  paint(): void {
    if (!this.chart || !this.candles) return;
    const of = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    this.chart.applyOptions({
      layout: { background: { color: of("--surface") }, textColor: of("--muted") },
      grid: { vertLines: { color: of("--line") }, horzLines: { color: of("--line") } },
      rightPriceScale: { borderColor: of("--line") },
      timeScale: { borderColor: of("--line") },
    });
    const [up, down] = [of("--up"), of("--down")];
    this.candles.applyOptions({ upColor: up, downColor: down, borderUpColor: up, borderDownColor: down, wickUpColor: up, wickDownColor: down });
    this.mark();
  }

  heard(event: MarketEvent): void {
    if (event.key !== this.key) return;
    if (event.type === "backfilled") this.refresh();
    else this.mark();
  }

  private build(): void {
    if (this.chart) return;
    this.chart = createChart(el("chart"), {
      autoSize: true,
      layout: { attributionLogo: false, fontFamily: "inherit" },
      timeScale: { timeVisible: true, secondsVisible: false, rightOffset: 4, tickMarkFormatter: axisText },
      // What axis and crosshair say is local time; the data is UTC.
      localization: { timeFormatter: (time: Time) => new Date(Number(time) * 1000).toLocaleString() },
    });
    this.candles = this.chart.addSeries(CandlestickSeries);
    this.volumes = this.chart.addSeries(HistogramSeries, {
      priceScaleId: "volume",
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this.chart.priceScale("volume").applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
    this.markers = createSeriesMarkers(this.candles, []);
    this.paint();
  }

  private async load(): Promise<void> {
    const item = this.item!;
    const round = ++this.round;
    this.loading = true;
    this.early = [];
    for (const button of el("intervals").children as HTMLCollectionOf<HTMLElement>) {
      button.ariaPressed = String(button.dataset.interval === this.interval.id);
    }
    this.hint("Loading…");
    this.socket.watchChart({ key: item.key, interval: this.interval.socket });
    const digits = decimals(item.tick_size) ?? 2;
    this.build();
    this.candles!.applyOptions({ priceFormat: { type: "price", precision: digits, minMove: item.tick_size ?? 10 ** -digits } });
    try {
      const path = `/api/history/${encodeURIComponent(item.key)}?interval=${this.interval.id}&count=${BARS}&forming=true`;
      const history = await ask<History>(path);
      if (round !== this.round) return;
      this.past = history.missing?.map(([from, , reason]) => ({ at: from * 1000, type: "gap", key: item.key, text: reason })) ?? [];
      this.fill(history.candles);
      void this.markSwitches(item.key, round);
      this.hint(this.bars.size ? "" : "No bars yet. The first one appears with the next tick.");
      el("chart-complete").hidden = history.complete || !history.candles.length;
    } catch (error) {
      if (round !== this.round) return;
      this.past = [];
      this.fill([]);
      this.hint(error instanceof Refused ? error.message : "The past cannot be read; live bars appear all the same.");
    }
  }

  /** Mark what was switched before this page was opened; a token may not allow asking for it. */
  private async markSwitches(key: string, round: number): Promise<void> {
    const route = await ask<Route>(`/api/routes/${encodeURIComponent(key)}?events=200`).catch(() => null);
    if (!route || round !== this.round) return;
    const switches = route.events.filter((event) => event.from && event.to && event.from !== event.to);
    this.past.push(...switches.map((event) => ({ at: event.at_ms, type: "switched", key, text: event.reason })));
    this.mark();
  }

  private fill(candles: Candle[]): void {
    this.bars = new Map(candles.map((candle) => [candle[0], candle]));
    for (const candle of this.early) this.bars.set(candle[0], candle);
    this.early = [];
    this.loading = false;
    this.draw();
    this.chart!.timeScale().fitContent();
  }

  /** Draw all bars anew, oldest first. */
  private draw(): void {
    const candles = [...this.bars.values()].sort((a, b) => a[0] - b[0]);
    this.candles!.setData(candles.map(bar));
    this.volumes!.setData(candles.map(volume));
    this.newestS = candles.at(-1)?.[0] ?? 0;
    this.firstS = candles[0]?.[0] ?? 0;
    Object.assign(el("chart").dataset, { bars: candles.length, interval: this.interval.id, last: candles.at(-1)?.join(" ") ?? "" });
    this.mark();
  }

  private take(message: Message): void {
    if (message.type !== "chart_update" || message.instrumentKey !== this.key || message.interval !== this.interval.socket) return;
    for (const candle of message.ohlcv as Candle[]) {
      if (this.loading) {
        this.early.push(candle); // drawn when the past has come
        continue;
      }
      this.bars.set(candle[0], candle);
      if (candle[0] < this.newestS || !this.newestS) {
        this.draw(); // a bar further back was revised
      } else {
        this.newestS = candle[0];
        this.candles!.update(bar(candle));
        this.volumes!.update(volume(candle));
        Object.assign(el("chart").dataset, { bars: this.bars.size, last: candle.join(" ") });
      }
      this.hint("");
    }
  }

  private mark(): void {
    if (!this.markers || !this.item) return;
    const colours = getComputedStyle(document.documentElement);
    const stepS = { "1m": 60, "5m": 300, "15m": 900, "1h": 3600, "1d": 86_400 }[this.interval.id];
    const shown = new Set<string>();
    const marks = [...eventsOf(this.item.key), ...this.past].flatMap((event): SeriesMarker<Time>[] => {
      const look = MARKED[event.type];
      const atS = Math.floor(event.at / 1000 / stepS) * stepS;
      const once = `${event.type} ${atS}`;
      if (!look || !this.firstS || atS < this.firstS || shown.has(once)) return [];
      shown.add(once);
      const color = colours.getPropertyValue(look.color).trim();
      return [{ time: Math.min(atS, this.newestS) as UTCTimestamp, position: "aboveBar", shape: look.shape, color, text: event.type }];
    });
    this.markers.setMarkers(marks.sort((a, b) => Number(a.time) - Number(b.time)));
    // For those who cannot see the canvas, and for whoever reads the page by program.
    el("chart").setAttribute("aria-label", `Candle chart of ${this.item.key}${[...new Set(marks.map((mark) => `, ${mark.text}`))].join("")}`);
  }

  private hint(text: string): void {
    el("chart-hint").hidden = !text;
    put(el("chart-hint"), text);
  }
}

/** Time on the axis, in the reader's zone, as coarse as the axis asks for. */
function axisText(time: Time, kind: TickMarkType): string {
  const at = new Date(Number(time) * 1000);
  if (kind === TickMarkType.Year) return String(at.getFullYear());
  if (kind === TickMarkType.Month) return at.toLocaleDateString([], { month: "short" });
  if (kind === TickMarkType.DayOfMonth) return at.toLocaleDateString([], { day: "numeric", month: "short" });
  return at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

const bar = ([time, open, high, low, close]: Candle): CandlestickData => ({ time: time as UTCTimestamp, open, high, low, close });

function volume([time, open, , , close, traded]: Candle): { time: UTCTimestamp; value: number; color: string } {
  const name = close >= open ? "--up-wash" : "--down-wash";
  return { time: time as UTCTimestamp, value: traded ?? 0, color: getComputedStyle(document.documentElement).getPropertyValue(name).trim() };
}
