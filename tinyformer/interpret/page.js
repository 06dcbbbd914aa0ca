"use strict"
// What is shown: of map `map` the head `head` of layer `layer`, in each text the token that is chosen, and of the chosen token the prediction `choice`.
const D = JSON.parse(document.getElementById("data").textContent)
const $ = (id) => document.getElementById(id)
const at = { ...D.start, choice: 0, all: false, chosen: { ...D.start.chosen } }
const TOP = 14

function el(name, set = {}, ...inside) {
  const e = document.createElement(name)
  for (const [k, v] of Object.entries(set))
    k in e && k != "style" ? (e[k] = v) : e.setAttribute(k, v)
  e.append(...inside)
  return e
}
function bytes(text) {
  const s = atob(text),
    all = new Uint8Array(s.length)
  for (let i = 0; i < s.length; i++) all[i] = s.charCodeAt(i)
  return all
}
for (const m of D.maps) m.weights = bytes(m.data)
if (D.parts) D.parts.values = new Float32Array(bytes(D.parts.adds).buffer)

const colours = {} // of the style sheet, read when it changes: light or dark
function readColours() {
  const style = getComputedStyle(document.documentElement)
  for (const name of ["full", "ink", "quiet", "line", "mark"])
    colours[name] = style.getPropertyValue("--" + name).trim()
}
const ink = (w) => Math.sqrt(w / 255) // of a weight from 0 to 255; small ones would not be seen otherwise
const percent = (p) => (p > 0 && p < 0.005 ? "<1%" : Math.round(p * 100) + "%")
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2)
const map = () => D.maps[at.map]
const row = (m, layer, head, t) =>
  m.weights.subarray(
    ((layer * m.heads + head) * m.T + t) * m.S,
    ((layer * m.heads + head) * m.T + t + 1) * m.S,
  )
const short = (label) => label.trim() || "␣"
const apart = (label) =>
  /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.test(label) ? `\u2068${label}\u2069` : label // what runs from the right turns nothing around it
const patch = (text, i) => D.picture && text == D.picture.text
const called = (text, i) =>
  patch(text)
    ? i
      ? `the patch in row ${Math.floor((i - 1) / D.picture.columns) + 1}, column ${((i - 1) % D.picture.columns) + 1}`
      : "the class token"
    : `“${short(D.texts[text].labels[i])}”`
const largest = (w, n) =>
  [...w.keys()]
    .sort((a, b) => w[b] - w[a])
    .slice(0, n)
    .filter((s) => w[s] > 0)
const headName = (kind, layer, head) =>
  kind == "cross" ? `layer ${layer} cross head ${head}` : `layer ${layer} head ${head}`

// ---- heads

function buildGrid() {
  const m = map(),
    grid = $("grid")
  grid.style.gridTemplateColumns = `1.4rem repeat(${m.heads}, minmax(20px, 1fr))`
  grid.style.maxWidth = m.heads < 8 ? `${1.4 + 5.5 * m.heads}rem` : ""
  grid.replaceChildren(
    el("span"),
    ...[...Array(m.heads).keys()].map((h) => el("span", { className: "head" }, `${h}`)),
  )
  for (let l = 0; l < m.layers; l++) {
    grid.append(el("span", {}, `${l}`))
    for (let h = 0; h < m.heads; h++)
      grid.append(
        el(
          "button",
          {
            type: "button",
            id: `h-${l}-${h}`,
            "aria-label": `layer ${l} head ${h}`,
            onclick: () => choose(l, h),
          },
          el("canvas"),
        ),
      )
  }
  drawGrid()
}
function drawGrid() {
  const m = map()
  for (let l = 0; l < m.layers; l++)
    for (let h = 0; h < m.heads; h++) thumbnail($(`h-${l}-${h}`).firstChild, m, l, h)
}
function thumbnail(canvas, m, layer, head) {
  const p = patch(m.rows) && D.picture,
    t = at.chosen[m.rows]
  const [height, width] = p ? [p.rows, p.columns] : [m.T, m.S]
  canvas.width = width
  canvas.height = height
  const c = canvas.getContext("2d"),
    image = c.createImageData(width, height),
    [r, g, b] = colours.full.split(",").map(Number)
  const weights = p
      ? row(m, layer, head, t).subarray(1)
      : m.weights.subarray((layer * m.heads + head) * m.T * m.S),
    most = p ? Math.max(1, ...weights) / 255 : 1
  for (let i = 0, o = 0; i < width * height; i++) {
    image.data[o++] = r
    image.data[o++] = g
    image.data[o++] = b
    image.data[o++] = 255 * ink(weights[i] / most)
  }
  c.putImageData(image, 0, 0)
}
function choose(layer, head, focus = false) {
  const m = map()
  at.layer = Math.max(0, Math.min(m.layers - 1, layer))
  at.head = Math.max(0, Math.min(m.heads - 1, head))
  for (const b of $("grid").querySelectorAll("button")) {
    const on = b.id == `h-${at.layer}-${at.head}`
    b.setAttribute("aria-pressed", on)
    b.tabIndex = on ? 0 : -1
    if (on && focus) b.focus({ preventScroll: focus == "quietly" })
  }
  show()
}
function openMap(index, layer = at.layer, head = at.head) {
  at.map = index
  for (const [i, b] of [...$("maps").children].entries()) {
    b.setAttribute("aria-checked", i == index)
    b.tabIndex = i == index ? 0 : -1
  }
  buildTexts()
  buildGrid()
  choose(layer, head)
}
function arrows(e, move) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[
    e.key
  ]
  if (!step || e.ctrlKey || e.altKey || e.metaKey) return
  e.preventDefault()
  move(...step)
}
$("grid").onkeydown = (e) => arrows(e, (l, h) => choose(at.layer + l, at.head + h, true))
$("map").onkeydown = (e) => arrows(e, (l, h) => choose(at.layer + l, at.head + h))

// ---- texts: the chosen token is the query, the others are lit by what it gives them

function buildTexts() {
  const m = map()
  $("texts").replaceChildren(
    ...[...new Set([m.rows, m.columns])].map((name) => {
      const text = D.texts[name],
        queries = name == m.rows
      const line = el("div", {
        className: "text",
        dir: text.rtl ? "rtl" : "ltr",
        role: "group",
        "aria-label": text.title || "the text",
      })
      if (text.title) line.append(el("h3", {}, text.title))
      if (patch(name)) {
        line.append(
          el(
            "button",
            { className: "t", type: "button", onclick: () => pick(name, 0) },
            "the class token",
            el("small"),
          ),
        )
        return Object.assign(line, { tokens: { 0: line.lastChild }, name })
      }
      line.tokens = text.labels.map((label, i) =>
        el(
          queries ? "button" : "span",
          {
            className: "t" + (/^\s/.test(label) && i ? " blank" : ""),
            ...(queries && { type: "button" }),
          },
          short(label),
          el("small"),
        ),
      )
      line.append(...line.tokens)
      if (!queries) return Object.assign(line, { name })
      for (const [i, b] of line.tokens.entries()) {
        b.onmouseenter = () => show(i)
        b.onclick = () => pick(name, i)
        b.onfocus = () => {
          if (b.matches(":focus-visible")) pick(name, i)
        }
      }
      line.onmouseleave = () => show()
      line.onkeydown = (e) =>
        arrows(e, (down, right) =>
          line.tokens[
            Math.max(
              0,
              Math.min(
                line.tokens.length - 1,
                at.chosen[name] + (right || down) * (text.rtl && right ? -1 : 1),
              ),
            )
          ].focus(),
        )
      return Object.assign(line, { name })
    }),
  )
}
function pick(text, i) {
  at.chosen[text] = i
  if (patch(text)) drawGrid()
  show()
  if (D.lens && D.lens.text == text) showPredictions()
}
function sentence(m, t) {
  const w = row(m, at.layer, at.head, t),
    who = called(m.rows, t)
  const whom = largest(w, 4)
    .map((s, n) => `${n ? "" : "attends "}${percent(w[s] / 255)} to ${called(m.columns, s)}`)
    .join(", ")
  return `Layer ${at.layer} head ${at.head}: ${who} ${whom || "attends to nothing"}.`
}
function show(hovered) {
  const m = map(),
    t = hovered ?? at.chosen[m.rows],
    w = row(m, at.layer, at.head, t)
  for (const line of $("texts").children)
    for (const [i, b] of Object.entries(line.tokens)) {
      const lit = line.name == m.columns ? w[i] : 0
      b.style.backgroundColor = lit ? `rgba(${colours.full},${(0.55 * ink(lit)).toFixed(3)})` : ""
      b.lastChild.textContent = lit > 1 ? Math.round(lit / 2.55) : ""
      b.classList.toggle("query", line.name == m.rows && i == t)
      if (b.type == "button") b.tabIndex = i == at.chosen[m.rows] ? 0 : -1
    }
  $("say").textContent = sentence(m, t)
  drawMap(t)
}

// ---- the large map

const canvas = $("map")
let shape = null // how the map lies on the canvas: margins, the size of a cell
function drawMap(t, key) {
  const m = map(),
    p = patch(m.rows) && D.picture,
    c = canvas.getContext("2d"),
    scale = window.devicePixelRatio || 1,
    width = $("stage").clientWidth
  $("stage").classList.toggle("over", !!p)
  if (p && !$("photo"))
    $("stage").prepend(
      el("img", { id: "photo", src: p.src, alt: "the picture as the model sees it" }),
    )
  c.font = `13px ${getComputedStyle(document.body).fontFamily}`
  const names = p ? [] : [...D.texts[m.rows].labels, ...D.texts[m.columns].labels].map(short),
    wish = Math.min(120, width * 0.24, 8 + Math.max(0, ...names.map((s) => c.measureText(s).width)))
  const labels = !p && (width - wish) / m.S >= 9,
    margin = labels ? wish : 0
  const wide = p ? width / p.columns : Math.min(labels ? 34 : width, (width - margin) / m.S),
    tall = p ? wide : Math.min(wide, Math.max(labels ? 11 : 1, 560 / m.T))
  const high = margin + tall * (p ? p.rows : m.T) + (p ? 0 : 1),
    x = (s) => margin + s * wide,
    y = (t) => margin + t * tall
  canvas.style.height = p ? "" : `${high}px`
  canvas.width = Math.round(width * scale)
  canvas.height = Math.round(high * scale)
  c.setTransform(scale, 0, 0, scale, 0, 0)
  c.clearRect(0, 0, width, high)
  shape = { wide, tall, margin, p, w: p ? p.columns : m.S, h: p ? p.rows : m.T }
  const full = colours.full
  if (p) {
    // what is not attended to is veiled
    const w = row(m, at.layer, at.head, t).subarray(1),
      most = Math.max(1, ...w)
    for (let i = 0; i < w.length; i++) {
      c.fillStyle = `rgba(0,0,0,${(0.86 * (1 - ink((255 * w[i]) / most))).toFixed(3)})`
      const [s, r] = [i % p.columns, Math.floor(i / p.columns)],
        [left, top] = [x(s), y(r)].map(Math.round) // whole pixels, or the veils would overlap
      c.fillRect(left, top, Math.round(x(s + 1)) - left, Math.round(y(r + 1)) - top)
    }
    if (t) {
      c.strokeStyle = colours.mark
      c.lineWidth = 2
      c.strokeRect(
        x((t - 1) % p.columns) + 1,
        y(Math.floor((t - 1) / p.columns)) + 1,
        wide - 2,
        tall - 2,
      )
    }
  } else {
    for (let i = 0; i < m.T; i++) {
      const w = row(m, at.layer, at.head, i)
      for (let s = 0; s < m.S; s++)
        if (w[s]) {
          c.fillStyle = `rgba(${full},${ink(w[s]).toFixed(3)})`
          c.fillRect(x(s), y(i), wide, tall)
        }
    }
    c.strokeStyle = colours.line
    c.lineWidth = 1
    c.strokeRect(margin + 0.5, margin + 0.5, m.S * wide - 1, m.T * tall - 1)
    c.strokeStyle = colours.mark
    c.lineWidth = 1.5
    c.strokeRect(margin, y(t), m.S * wide, tall)
    if (key != null) c.strokeRect(x(key), margin, wide, m.T * tall)
    if (labels) {
      c.font = `${Math.min(13, tall * 0.86)}px ${getComputedStyle(document.body).fontFamily}`
      c.textBaseline = "middle"
      const cut = (s) => {
        s = short(s)
        while (s.length > 1 && c.measureText(s).width > margin - 8) s = s.slice(0, -2) + "…"
        return s
      }
      c.textAlign = "right"
      for (let i = 0; i < m.T; i++) {
        c.fillStyle = colours[i == t ? "ink" : "quiet"]
        c.fillText(cut(D.texts[m.rows].labels[i]), margin - 5, y(i + 0.5))
      }
      c.textAlign = "left"
      c.rotate(-Math.PI / 2)
      for (let s = 0; s < m.S; s++) {
        c.fillStyle = colours[s == key ? "ink" : "quiet"]
        c.fillText(cut(D.texts[m.columns].labels[s]), 5 - margin, x(s + 0.5))
      }
    }
  }
  canvas.setAttribute(
    "aria-label",
    `${m.title}, layer ${at.layer} head ${at.head}. ${sentence(m, t)}`,
  )
  $("under").textContent =
    `Layer ${at.layer}, head ${at.head}. ` +
    (p
      ? "The lighter a patch, the more the chosen one attends to it; the lightest has the largest weight of them all. Choose a patch to see what it attends to."
      : "A row is a token that attends, a column what it attends to; the stronger the colour, the more. Each row adds up to 100%.") +
    kindsOf(at.map, at.layer, at.head)
}
function cellAt(e) {
  const box = canvas.getBoundingClientRect(),
    s = Math.floor((e.clientX - box.left - shape.margin) / shape.wide),
    t = Math.floor((e.clientY - box.top - shape.margin) / shape.tall)
  return s >= 0 && t >= 0 && s < shape.w && t < shape.h ? [t, s] : null
}
canvas.onpointermove = (e) => {
  const found = cellAt(e),
    m = map()
  if (!found) return show()
  const [t, s] = shape.p ? [at.chosen[m.rows], 1 + found[0] * shape.p.columns + found[1]] : found
  if (!shape.p) {
    show(t)
    drawMap(t, s)
  }
  $("say").textContent =
    `Layer ${at.layer} head ${at.head}: ${called(m.rows, t)} attends ${percent(row(m, at.layer, at.head, t)[s] / 255)} to ${called(m.columns, s)}.`
}
canvas.onpointerleave = () => show()
canvas.onclick = (e) => {
  const found = cellAt(e)
  if (found) pick(map().rows, shape.p ? 1 + found[0] * shape.p.columns + found[1] : found[0])
}

// ---- the logit lens, and what adds to a prediction

const place = () => Math.max(0, Math.min(D.lens.count - 1, at.chosen[D.lens.text]))
const guess = (l, p, n) => apart(short(D.lens.names[D.lens.best[l][p][n]]))
const layerName = (l) => (l ? `layer ${l - 1}` : "embeddings")
function buildLens() {
  if (!D.lens) return
  const L = D.lens,
    rows = [...L.best.keys()].reverse(),
    places = [...Array(L.count).keys()]
  $("layers").replaceChildren(
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th"),
        ...places.map((p) =>
          el("th", { scope: "col" }, patch(L.text) ? "class" : short(D.texts[L.text].labels[p])),
        ),
      ),
    ),
    el(
      "tbody",
      {},
      ...rows.map((l) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, layerName(l)),
          ...places.map((p) => el("td", { title: percent(L.chances[l][p][0]) }, guess(l, p, 0))),
        ),
      ),
    ),
  )
  const find = (e) => {
    const td = e.target.closest("td")
    return td && [rows[td.parentNode.rowIndex - 1], td.cellIndex - 1]
  }
  $("layers").onmouseover = (e) => {
    const found = find(e)
    if (found) sayLens(...found)
  }
  $("layers").onmouseleave = () => sayLens(rows[0], place())
  $("layers").onclick = (e) => {
    const found = find(e)
    if (found) {
      pick(L.text, found[1])
      sayLens(...found)
    }
  }
}
function sayLens(l, p) {
  const L = D.lens,
    top = L.best[l][p].map((_, n) => `${guess(l, p, n)} ${percent(L.chances[l][p][n])}`).join(", ")
  $("lens-say").textContent =
    `${L.verb} ${called(L.text, p)}, ${l ? "layer " + (l - 1) : "the embeddings alone"}: ${top}.`
}
function showPredictions() {
  if (!D.lens) return
  const p = place(),
    last = D.lens.best.length - 1
  for (const tr of $("layers").rows)
    for (const [i, cell] of [...tr.cells].entries()) {
      cell.classList.toggle("query", i == p + 1)
      if (cell.tagName == "TD")
        cell.style.backgroundColor = `rgba(${colours.full},${(0.5 * D.lens.chances[last - tr.rowIndex + 1][i - 1][0]).toFixed(3)})`
    }
  sayLens(last, p)
  if (!D.parts) return
  at.choice = Math.min(at.choice, D.parts.count - 1)
  $("choices").replaceChildren(
    ...[...Array(D.parts.count).keys()].map((n) =>
      el(
        "button",
        {
          type: "button",
          role: "radio",
          "aria-checked": n == at.choice,
          tabIndex: n == at.choice ? 0 : -1,
          onclick: () => {
            at.choice = n
            showPredictions()
            $("choices").children[n].focus()
          },
        },
        `${guess(last, p, n)} ${percent(D.lens.chances[last][p][n])}`,
      ),
    ),
  )
  const P = D.parts,
    adds = P.names.map((_, i) => P.values[(i * D.lens.count + p) * P.count + at.choice]),
    sum = adds.reduce((a, b) => a + b, 0)
  const order = [...adds.keys()].sort((a, b) => Math.abs(adds[b]) - Math.abs(adds[a])),
    shown = at.all ? order : order.slice(0, TOP),
    rest = order.slice(shown.length)
  const bars = shown.map((i) => [P.names[i], adds[i]])
  if (rest.length)
    bars.push([{ kind: `${rest.length} others together` }, rest.reduce((a, i) => a + adds[i], 0)])
  const low = Math.min(0, ...bars.map((b) => b[1])),
    high = Math.max(1e-9, ...bars.map((b) => b[1])),
    share = (x) => (100 * x) / (high - low)
  $("bars").replaceChildren(
    ...bars.map(([part, x]) => {
      const index = part.head == null ? -1 : D.maps.findIndex((m) => m.part == part.kind),
        name =
          part.head != null
            ? headName(part.kind, part.layer, part.head)
            : part.layer != null
              ? `layer ${part.layer} feed-forward`
              : part.kind
      return el(
        "li",
        {},
        el(
          "span",
          { className: "name" },
          index < 0
            ? name
            : el(
                "button",
                {
                  type: "button",
                  onclick: () => {
                    openMap(index, part.layer, part.head)
                    $("texts").scrollIntoView({ block: "start" })
                  },
                },
                name,
              ),
        ),
        el(
          "span",
          { className: "bar", style: `--zero:${share(-low)}%` },
          el("i", {
            className: x < 0 ? "less" : "",
            style: `left:${share(Math.min(0, x) - low)}%; width:${share(Math.abs(x))}%`,
          }),
        ),
        el("span", { className: "n" }, signed(x)),
      )
    }),
  )
  $("sum").textContent =
    `All ${adds.length} parts add up to ${sum.toFixed(3)}; the model's logit of “${guess(last, p, at.choice)}” is ${P.logits[p][at.choice].toFixed(3)}.`
  $("more").hidden = order.length <= TOP
  $("more").textContent = at.all ? "the largest alone" : "all of them"
}
$("more").onclick = () => {
  at.all = !at.all
  showPredictions()
}

// ---- kinds

function kindsOf(index, layer, head) {
  const scores = D.kinds && D.kinds.maps[index]
  if (!scores) return ""
  return (
    " On random tokens that come twice: " +
    Object.entries(D.kinds.names)
      .map(([k, words]) => `${percent(scores[k][layer][head])} to ${words}`)
      .join(", ") +
    "."
  )
}
function buildKinds() {
  if (!D.kinds) return
  $("known").replaceChildren(
    ...Object.entries(D.kinds.names).map(([kind, words]) => {
      const all = Object.entries(D.kinds.maps)
        .flatMap(([i, scores]) =>
          scores[kind].flatMap((heads, l) => heads.map((s, h) => [s, +i, l, h])),
        )
        .sort((a, b) => b[0] - a[0])
        .slice(0, 5)
      const several = Object.keys(D.kinds.maps).length > 1
      return el(
        "div",
        {},
        el("h3", {}, `${D.kinds.titles[kind]}`),
        el(
          "ol",
          {},
          ...all.map(([s, i, l, h]) =>
            el(
              "li",
              {},
              el(
                "button",
                {
                  type: "button",
                  onclick: () => {
                    openMap(i, l, h)
                    $("texts").scrollIntoView({ block: "start" })
                  },
                },
                (several ? D.maps[i].name + " " : "") + `${l}.${h}`,
              ),
              el("span", { className: "bar", style: `--share:${100 * s}%` }),
              el("span", { className: "n" }, s.toFixed(2)),
            ),
          ),
        ),
      )
    }),
  )
}

// ---- the page

document.title = D.title
$("about").textContent = D.about
for (const name of ["lens", "parts", "kinds"]) {
  $(name + "-how").textContent = D.how[name]
  $(name).hidden = !D.how[name]
}
$("maps").className = $("choices").className = "choice"
$("maps").hidden = D.maps.length < 2
$("maps").append(
  ...D.maps.map((m, i) =>
    el("button", { type: "button", role: "radio", onclick: () => openMap(i, 0, 0) }, m.title),
  ),
)
for (const id of ["maps", "choices"])
  $(id).onkeydown = (e) =>
    arrows(e, (a, b) => {
      const all = [...$(id).children],
        n = (all.indexOf(document.activeElement) + a + b + all.length) % all.length
      all[n].click()
      $(id).children[n].focus()
    })
function redraw() {
  readColours()
  drawGrid()
  show()
  showPredictions()
}
readColours()
buildLens()
buildKinds()
openMap(at.map, at.layer, at.head)
showPredictions()
if (matchMedia("(hover: hover)").matches) choose(at.layer, at.head, "quietly")
matchMedia("(prefers-color-scheme: dark)").onchange = redraw
let waiting = 0
new ResizeObserver(() => {
  cancelAnimationFrame(waiting)
  waiting = requestAnimationFrame(() => show())
}).observe($("stage"))
