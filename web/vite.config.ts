import { defineConfig } from "vite";

// `npm run dev` talks to a running daemon: MARKETD_URL=http://127.0.0.1:8080 npm run dev
const daemon = process.env.MARKETD_URL ?? "http://127.0.0.1:8080";

export default defineConfig({
  base: "/static/",
  build: {
    outDir: "dist",
    assetsDir: ".",
    // Names without a hash: the gateway asks browsers to look whether a file has changed.
    rollupOptions: {
      input: { app: "index.html", docs: "docs.html" },
      output: { entryFileNames: "[name].js", chunkFileNames: "shared.js", assetFileNames: "style[extname]" },
    },
    // A data: URL in a style sheet is not allowed by the page's policy.
    assetsInlineLimit: 0,
    modulePreload: false,
    target: "es2022",
  },
  server: { proxy: { "/api": daemon, "/readyz": daemon, "/ws": { target: daemon, ws: true } } },
});
