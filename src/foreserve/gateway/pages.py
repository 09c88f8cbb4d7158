"""The two pages for a browser. They load nothing from elsewhere, so they work on a machine without a network."""

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--good:#2a9d5c;--bad:#d1495b}
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}
h1{font-size:1.3rem}h1 small,.dim{color:var(--dim);font-weight:normal}
h2{font-size:1rem;margin:1.6rem 0 .4rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.good{color:var(--good)}.bad{color:var(--bad)}code,pre{font:12px/1.5 ui-monospace,monospace}
pre{overflow:auto;border:1px solid var(--line);padding:.6rem}summary{cursor:pointer;padding:.25rem 0}
b.m{display:inline-block;width:3.5rem}
"""

STATUS_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Foreserve</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style>
<h1>Foreserve <small id="version"></small></h1>
<p class="dim"><a href="/docs">paths</a> · <a href="/metrics">metrics</a> · <span id="state">loading</span></p>
<main id="main"></main>
<script>
const el = (tag, text, cls) => {{
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  return e;
}};
const table = (heads, rows) => {{
  const t = el("table"), h = t.createTHead().insertRow(), b = t.createTBody();
  heads.forEach(x => h.append(el("th", x[0], x[1])));
  rows.forEach(row => {{
    const r = b.insertRow();
    row.forEach((x, i) => r.append(Array.isArray(x) ? el("td", x[0], x[1]) : el("td", x, heads[i][1])));
  }});
  return t;
}};
const colour = {{ready: "good", gone: "bad"}};
function show(s) {{
  const main = el("main");
  document.getElementById("version").textContent = s.version;
  main.append(el("h2", "Services"), table(
    [["name"], ["kind"], ["ready"], ["waiting", "n"], ["running", "n"], ["replicas", "n"], ["wanted", "n"],
      ["start, s", "n"]],
    s.services.map(x => [x.name, x.kind, x.ready ? ["yes", "good"] : ["no", "bad"], x.waiting, x.running,
      x.replicas.filter(r => r.state === "ready").length, x.wanted, x.start_s ? x.start_s.toFixed(1) : ""])));
  const scaled = s.services.filter(x => x.scaling?.decision);
  if (scaled.length) main.append(el("h2", "Scaling"), table(
    [["name"], ["between", "n"], ["decision", "n"], ["why"]],
    scaled.map(x => {{
      const d = x.scaling.decision;
      const less = d.granted === d.wanted ? "" : " (" + d.wanted + " wanted: " + d.shared + ")";
      return [x.name, x.scaling.least + " to " + x.scaling.most, d.active + " → " + d.granted, d.why + less];
    }})));
  main.append(el("h2", "Replicas"), table(
    [["name"], ["state"], ["for, s", "n"], ["running", "n"], ["slots", "n"], ["process", "n"], ["node"], ["reason"]],
    s.services.flatMap(x => x.replicas.map(r => [r.name, [r.state, colour[r.state] ?? "dim"], r.since_s.toFixed(0),
      r.running, r.capacity.slots ?? "", r.pid ?? "", r.node ?? "", r.reason]))));
  const kinds = Object.keys(s.outcomes.requests);
  main.append(el("h2", "Outcomes"), table(
    [[""], ...kinds.map(k => [k, "n"])],
    Object.entries(s.outcomes).map(([part, counts]) => [part, ...kinds.map(k => counts[k])])));
  document.getElementById("main").replaceWith(main);
  main.id = "main";
}}
async function turn() {{
  const state = document.getElementById("state");
  try {{
    const reply = await fetch("/v1/foreserve/status");
    if (!reply.ok) throw new Error("status " + reply.status);
    const status = await reply.json();
    show(status);
    state.textContent = status.open + " open";
    state.className = "";
  }} catch (error) {{
    state.textContent = "no answer: " + error.message;
    state.className = "bad";
  }}
  setTimeout(turn, 2000);
}}
turn();
</script></html>
"""

DOCS_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Foreserve: paths</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style>
<h1>Foreserve <small>paths</small></h1>
<p class="dim"><a href="/">status</a> · <a href="/openapi.json">openapi.json</a></p>
<main id="main"></main>
<script>
const el = (tag, text, cls) => {{
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  return e;
}};
const fold = (head, ...inside) => {{
  const d = el("details"), s = el("summary");
  s.append(...head);
  d.append(s, ...inside);
  return d;
}};
fetch("/openapi.json").then(r => r.json()).then(page => {{
  const main = document.getElementById("main"), groups = new Map();
  for (const [path, operations] of Object.entries(page.paths))
    for (const [method, o] of Object.entries(operations)) {{
      const body = o.requestBody?.content["application/json"].schema;
      const parts = [el("p", o.description ?? "")];
      if (body) parts.push(el("p", "Body"), el("pre", JSON.stringify(body, null, 1)));
      if (o.parameters?.length)
        parts.push(table(o.parameters.map(p => [p.name, p.in, JSON.stringify(p.schema ?? {{}})])));
      parts.push(table(Object.entries(o.responses).map(([code, r]) => [code, r.description])));
      const tag = o.tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, []);
      const head = [el("b", method.toUpperCase(), "m"), el("code", path), " " + (o.summary ?? "")];
      groups.get(tag).push(fold(head, ...parts));
    }}
  for (const [tag, items] of groups) main.append(el("h2", tag), ...items);
  main.append(el("h2", "Schemas"), ...Object.entries(page.components.schemas).map(([name, schema]) =>
    fold([el("code", name)], el("pre", JSON.stringify(schema, null, 1)))));
}});
function table(rows) {{
  const t = el("table");
  rows.forEach(row => {{ const r = t.insertRow(); row.forEach(x => r.append(el("td", x))); }});
  return t;
}}
</script></html>
"""
