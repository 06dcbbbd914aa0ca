"use strict"
const element = (id) => document.getElementById(id)
const data = JSON.parse(element("data").textContent)
const shading = JSON.parse(element("shading").textContent)

// The current selection: head `head` of layer `layer` of map `map`, one token of each text
// (`chosen`), one of the predictions for the chosen token (`prediction`), and the name of a scale.
const state = {
  ...data.start,
  chosen: { ...data.start.chosen },
  prediction: 0,
  showAllContributions: false,
}
const NUM_CONTRIBUTIONS = 14 // contributions shown at first

function createElement(tag, properties = {}, ...children) {
  const created = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in created && name != "style") created[name] = value
    else created.setAttribute(name, value)
  }
  created.append(...children)
  return created
}
function decodeBase64(text) {
  const characters = atob(text)
  const bytes = new Uint8Array(characters.length)
  for (let i = 0; i < characters.length; i++) bytes[i] = characters.charCodeAt(i)
  return bytes
}
for (const map of data.maps) map.weights = decodeBase64(map.data)
if (data.parts) data.parts.values = new Float32Array(decodeBase64(data.parts.adds).buffer)

const range = (n) => [...Array(n).keys()]
const clamp = (x, min, max) => Math.max(min, Math.min(max, x))

// The colors of the style sheet. They change between light and dark mode.
const colors = {}
function readColors() {
  const style = getComputedStyle(document.documentElement)
  const names = ["positive", "text", "muted", "border", "highlight", "text-background-opacity"]
  for (const name of names) colors[name] = style.getPropertyValue("--" + name).trim()
}

// Weights are bytes: 255 is a weight of 1. The largest weight has shade 1.
const currentScale = () => shading.scales.find((scale) => scale.name == state.scale)
const shade = (weight, largest = 255) => (weight / largest) ** currentScale().exponent
// The opacity of the black that covers a patch of an image.
const darkening = (patchShade) => shading.patchDarkening * (1 - patchShade)
const fill = (alpha) => `rgba(${colors.positive},${alpha.toFixed(3)})`
const fillBehindText = (share) => fill(colors["text-background-opacity"] * share)
const percent = (p) => (p > 0 && p < 0.005 ? "<1%" : Math.round(p * 100) + "%")
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2)

const currentMap = () => data.maps[state.map]
function weightRow(map, layer, head, query) {
  const start = ((layer * map.heads + head) * map.T + query) * map.S
  return map.weights.subarray(start, start + map.S)
}
const visibleLabel = (label) => label.trim() || "␣"

// Isolate right-to-left text, so that it does not change the order of the text around it.
const rightToLeft = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/
const isolate = (label) => (rightToLeft.test(label) ? `\u2068${label}\u2069` : label)

const isImage = (text) => data.picture && text == data.picture.text
function describeToken(text, i) {
  if (!isImage(text)) return `“${visibleLabel(data.texts[text].labels[i])}”`
  if (!i) return "the class token"
  const row = Math.floor((i - 1) / data.picture.columns) + 1
  const column = ((i - 1) % data.picture.columns) + 1
  return `the patch in row ${row}, column ${column}`
}
const largestWeights = (weights, n) =>
  [...weights.keys()]
    .sort((a, b) => weights[b] - weights[a])
    .slice(0, n)
    .filter((key) => weights[key] > 0)
const headName = (kind, layer, head) =>
  kind == "cross" ? `layer ${layer} cross head ${head}` : `layer ${layer} head ${head}`

// ---- The grid of heads

function buildGrid() {
  const map = currentMap()
  const grid = element("grid")
  grid.style.gridTemplateColumns = `1.4rem repeat(${map.heads}, minmax(20px, 1fr))`
  grid.style.maxWidth = map.heads < 8 ? `${1.4 + 5.5 * map.heads}rem` : ""
  const headNumbers = range(map.heads).map((head) =>
    createElement("span", { className: "head" }, `${head}`),
  )
  grid.replaceChildren(createElement("span"), ...headNumbers)
  for (const layer of range(map.layers)) {
    grid.append(createElement("span", {}, `${layer}`))
    for (const head of range(map.heads)) grid.append(headButton(layer, head))
  }
  drawGrid()
}
function headButton(layer, head) {
  const properties = {
    type: "button",
    id: `h-${layer}-${head}`,
    "aria-label": `layer ${layer} head ${head}`,
    onclick: () => selectHead(layer, head),
  }
  return createElement("button", properties, createElement("canvas"))
}
function drawGrid() {
  const map = currentMap()
  for (const layer of range(map.layers))
    for (const head of range(map.heads))
      drawThumbnail(element(`h-${layer}-${head}`).firstChild, map, layer, head)
}
function drawThumbnail(thumbnail, map, layer, head) {
  const picture = isImage(map.rows) && data.picture
  let width = map.S
  let height = map.T
  let weights = map.weights.subarray((layer * map.heads + head) * map.T * map.S)
  let largest = 255
  if (picture) {
    width = picture.columns
    height = picture.rows
    weights = weightRow(map, layer, head, state.chosen[map.rows]).subarray(1)
    largest = Math.max(1, ...weights)
  }
  thumbnail.width = width
  thumbnail.height = height
  const context = thumbnail.getContext("2d")
  const image = context.createImageData(width, height)
  const color = colors.positive.split(",").map(Number)
  for (let i = 0; i < width * height; i++) {
    const value = shade(weights[i], largest)
    const gray = 255 * (1 - darkening(value))
    const pixel = picture ? [gray, gray, gray, 255] : [...color, 255 * value]
    image.data.set(pixel, 4 * i)
  }
  context.putImageData(image, 0, 0)
}
function selectHead(layer, head, focus = false) {
  const map = currentMap()
  state.layer = clamp(layer, 0, map.layers - 1)
  state.head = clamp(head, 0, map.heads - 1)
  for (const button of element("grid").querySelectorAll("button")) {
    const selected = button.id == `h-${state.layer}-${state.head}`
    button.setAttribute("aria-pressed", selected)
    button.tabIndex = selected ? 0 : -1
    if (selected && focus) button.focus({ preventScroll: focus == "without scrolling" })
  }
  update()
}
function openMap(index, layer = state.layer, head = state.head) {
  state.map = index
  for (const [i, button] of [...element("maps").children].entries()) {
    button.setAttribute("aria-checked", i == index)
    button.tabIndex = i == index ? 0 : -1
  }
  buildTexts()
  drawLegend()
  buildGrid()
  selectHead(layer, head)
}
function openHead(map, layer, head) {
  openMap(map, layer, head)
  element("texts").scrollIntoView({ block: "start" })
}

// ---- The color bar and the choice of its scale

function drawLegend() {
  const scale = currentScale()
  const picture = isImage(currentMap().rows)
  const gray = `rgb(${range(3).fill(Math.round(255 * (1 - darkening(0))))})`
  const ends = picture ? [gray, "white"] : [fill(0), fill(1)]
  const label = picture ? scale.imageLabel : scale.label
  const ticks = scale.ticks.map((tick) => {
    const left = 100 * shade(tick, 1)
    return createElement("span", { style: `left:${left}%` }, `${tick}`)
  })
  element("color-bar-colors").style.background = `linear-gradient(to right, ${ends})`
  element("color-bar-label").textContent = label
  element("color-bar-ticks").replaceChildren(...ticks)
  element("color-bar").setAttribute("aria-label", `Color bar from 0 to 1: ${label}`)
  for (const [i, button] of [...element("scales").children].entries()) {
    const selected = shading.scales[i] == scale
    button.setAttribute("aria-checked", selected)
    button.tabIndex = selected ? 0 : -1
  }
}
function selectScale(name) {
  state.scale = name
  drawLegend()
  drawGrid()
  update()
}

// Call move(down, right) for an arrow key.
function handleArrowKey(event, move) {
  const directions = {
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
  }
  const step = directions[event.key]
  if (!step || event.ctrlKey || event.altKey || event.metaKey) return
  event.preventDefault()
  move(...step)
}
element("grid").onkeydown = (event) =>
  handleArrowKey(event, (down, right) => selectHead(state.layer + down, state.head + right, true))
element("map").onkeydown = (event) =>
  handleArrowKey(event, (down, right) => selectHead(state.layer + down, state.head + right))

// ---- The texts: the chosen token is the query; colors show the weights of the keys

function buildTexts() {
  const map = currentMap()
  const names = [...new Set([map.rows, map.columns])]
  element("texts").replaceChildren(...names.map((name) => buildText(name, name == map.rows)))
}
function buildText(name, hasQueries) {
  const text = data.texts[name]
  const line = createElement("div", {
    className: "text",
    dir: text.rtl ? "rtl" : "ltr",
    role: "group",
    "aria-label": text.title || "the text",
  })
  line.name = name
  if (text.title) line.append(createElement("h3", {}, text.title))
  if (isImage(name)) {
    const properties = { className: "t", type: "button", onclick: () => selectToken(name, 0) }
    line.tokens = {
      0: createElement("button", properties, "the class token", createElement("small")),
    }
    line.append(line.tokens[0])
    return line
  }
  line.tokens = text.labels.map((label, i) => tokenElement(label, i, hasQueries))
  line.append(...line.tokens)
  if (hasQueries) addTokenHandlers(line, text)
  return line
}
function tokenElement(label, i, isQuery) {
  const followsSpace = /^\s/.test(label) && i
  const properties = { className: followsSpace ? "t space" : "t" }
  if (isQuery) properties.type = "button"
  const tag = isQuery ? "button" : "span"
  return createElement(tag, properties, visibleLabel(label), createElement("small"))
}
function addTokenHandlers(line, text) {
  for (const [i, button] of line.tokens.entries()) {
    button.onmouseenter = () => update(i)
    button.onclick = () => selectToken(line.name, i)
    button.onfocus = () => {
      if (button.matches(":focus-visible")) selectToken(line.name, i)
    }
  }
  line.onmouseleave = () => update()
  line.onkeydown = (event) =>
    handleArrowKey(event, (down, right) => {
      const step = (right || down) * (text.rtl && right ? -1 : 1)
      const next = clamp(state.chosen[line.name] + step, 0, line.tokens.length - 1)
      line.tokens[next].focus()
    })
}
function selectToken(text, i) {
  state.chosen[text] = i
  if (isImage(text)) drawGrid()
  update()
  if (data.lens && data.lens.text == text) updatePredictions()
}
function describeHead(map, query) {
  const weights = weightRow(map, state.layer, state.head, query)
  const keys = largestWeights(weights, 4).map(
    (key) => `${describeToken(map.columns, key)} (${percent(weights[key] / 255)})`,
  )
  const subject = `Layer ${state.layer} head ${state.head}: ${describeToken(map.rows, query)}`
  return `${subject} attends to ${keys.join(", ") || "nothing"}.`
}
// Show the selected head for the token under the pointer, or else for the chosen token.
function update(hovered) {
  const map = currentMap()
  const query = hovered ?? state.chosen[map.rows]
  const weights = weightRow(map, state.layer, state.head, query)
  for (const line of element("texts").children)
    for (const [i, token] of Object.entries(line.tokens)) {
      const weight = line.name == map.columns ? weights[i] : 0
      token.style.backgroundColor = weight ? fillBehindText(shade(weight)) : ""
      token.lastChild.textContent = weight > 1 ? Math.round(weight / 2.55) : ""
      token.classList.toggle("query", line.name == map.rows && i == query)
      if (token.type == "button") token.tabIndex = i == state.chosen[map.rows] ? 0 : -1
    }
  element("description").textContent = describeHead(map, query)
  drawMap(query)
}

// ---- The large map

const canvas = element("map")
let layout = null // margin, size of a cell and number of cells of the map on the canvas

function textLayout(map, stageWidth, context) {
  context.font = canvasFont(13)
  const labels = [...data.texts[map.rows].labels, ...data.texts[map.columns].labels]
  const widths = labels.map((label) => context.measureText(visibleLabel(label)).width)
  const labelWidth = Math.min(120, stageWidth * 0.24, 8 + Math.max(0, ...widths))
  const hasLabels = (stageWidth - labelWidth) / map.S >= 9
  const margin = hasLabels ? labelWidth : 0
  const cellWidth = Math.min(hasLabels ? 34 : stageWidth, (stageWidth - margin) / map.S)
  const cellHeight = Math.min(cellWidth, Math.max(hasLabels ? 11 : 1, 560 / map.T))
  const height = margin + cellHeight * map.T + 1
  return { hasLabels, margin, cellWidth, cellHeight, height, rows: map.T, columns: map.S }
}
function imageLayout(picture, stageWidth) {
  const cellSize = stageWidth / picture.columns
  return {
    picture,
    margin: 0,
    cellWidth: cellSize,
    cellHeight: cellSize,
    height: cellSize * picture.rows,
    rows: picture.rows,
    columns: picture.columns,
  }
}
const canvasFont = (size) => `${size}px ${getComputedStyle(document.body).fontFamily}`
const cellX = (column) => layout.margin + column * layout.cellWidth
const cellY = (row) => layout.margin + row * layout.cellHeight

function drawMap(query, key) {
  const map = currentMap()
  const picture = isImage(map.rows) && data.picture
  const context = canvas.getContext("2d")
  const scale = window.devicePixelRatio || 1
  const width = element("stage").clientWidth
  element("stage").classList.toggle("over", !!picture)
  if (picture && !element("photo")) {
    const properties = { id: "photo", src: picture.src, alt: "the image as the model reads it" }
    element("stage").prepend(createElement("img", properties))
  }
  layout = picture ? imageLayout(picture, width) : textLayout(map, width, context)
  canvas.style.height = picture ? "" : `${layout.height}px`
  canvas.width = Math.round(width * scale)
  canvas.height = Math.round(layout.height * scale)
  context.setTransform(scale, 0, 0, scale, 0, 0)
  context.clearRect(0, 0, width, layout.height)
  if (picture) drawPatches(context, map, query)
  else drawCells(context, map, query, key)
  if (layout.hasLabels) drawLabels(context, map, query, key)
  const head = `layer ${state.layer} head ${state.head}`
  canvas.setAttribute("aria-label", `${map.title}, ${head}. ${describeHead(map, query)}`)
  element("caption").textContent = mapCaption(picture)
}
function mapCaption(picture) {
  const head = `Layer ${state.layer}, head ${state.head}. `
  const explanation = picture
    ? `The brightness of a patch grows with ${currentScale().quantity}. ` +
      "In each head, the brightest patch has the largest attention weight of all patches. " +
      "Choose a patch to see its attention weights."
    : "Each row is a query token and each column is a key token. " +
      `The strength of a color is proportional to ${currentScale().quantity}. ` +
      "Each row adds up to 100%."
  return head + explanation + describeHeadTypes(state.map, state.layer, state.head)
}
// Darken the patches that have small weights.
function drawPatches(context, map, query) {
  const weights = weightRow(map, state.layer, state.head, query).subarray(1)
  const largest = Math.max(1, ...weights)
  for (let i = 0; i < weights.length; i++) {
    const alpha = darkening(shade(weights[i], largest))
    context.fillStyle = `rgba(0,0,0,${alpha.toFixed(3)})`
    const column = i % layout.columns
    const row = Math.floor(i / layout.columns)
    // Whole pixels: fractional rectangles would overlap.
    const left = Math.round(cellX(column))
    const top = Math.round(cellY(row))
    const right = Math.round(cellX(column + 1))
    const bottom = Math.round(cellY(row + 1))
    context.fillRect(left, top, right - left, bottom - top)
  }
  if (!query) return
  const left = cellX((query - 1) % layout.columns)
  const top = cellY(Math.floor((query - 1) / layout.columns))
  context.strokeStyle = colors.highlight
  context.lineWidth = 2
  context.strokeRect(left + 1, top + 1, layout.cellWidth - 2, layout.cellHeight - 2)
}
function drawCells(context, map, query, key) {
  const { margin, cellWidth, cellHeight } = layout
  const width = map.S * cellWidth
  const height = map.T * cellHeight
  for (let t = 0; t < map.T; t++) {
    const weights = weightRow(map, state.layer, state.head, t)
    for (let s = 0; s < map.S; s++)
      if (weights[s]) {
        context.fillStyle = fill(shade(weights[s]))
        context.fillRect(cellX(s), cellY(t), cellWidth, cellHeight)
      }
  }
  context.strokeStyle = colors.border
  context.lineWidth = 1
  context.strokeRect(margin + 0.5, margin + 0.5, width - 1, height - 1)
  context.strokeStyle = colors.highlight
  context.lineWidth = 1.5
  context.strokeRect(margin, cellY(query), width, cellHeight)
  if (key != null) context.strokeRect(cellX(key), margin, cellWidth, height)
}
function drawLabels(context, map, query, key) {
  const { margin, cellHeight } = layout
  const shorten = (label) => {
    let shortened = visibleLabel(label)
    while (shortened.length > 1 && context.measureText(shortened).width > margin - 8)
      shortened = shortened.slice(0, -2) + "…"
    return shortened
  }
  context.font = canvasFont(Math.min(13, cellHeight * 0.86))
  context.textBaseline = "middle"
  context.textAlign = "right"
  for (let t = 0; t < map.T; t++) {
    context.fillStyle = t == query ? colors.text : colors.muted
    context.fillText(shorten(data.texts[map.rows].labels[t]), margin - 5, cellY(t + 0.5))
  }
  context.textAlign = "left"
  context.rotate(-Math.PI / 2)
  for (let s = 0; s < map.S; s++) {
    context.fillStyle = s == key ? colors.text : colors.muted
    context.fillText(shorten(data.texts[map.columns].labels[s]), 5 - margin, cellX(s + 0.5))
  }
}
// Return the [row, column] of the cell under the pointer, or null.
function cellAt(event) {
  const box = canvas.getBoundingClientRect()
  const column = Math.floor((event.clientX - box.left - layout.margin) / layout.cellWidth)
  const row = Math.floor((event.clientY - box.top - layout.margin) / layout.cellHeight)
  const isInside = row >= 0 && column >= 0 && row < layout.rows && column < layout.columns
  return isInside ? [row, column] : null
}
const patchAt = ([row, column]) => 1 + row * layout.columns + column
canvas.onpointermove = (event) => {
  const cell = cellAt(event)
  if (!cell) return update()
  const map = currentMap()
  let [query, key] = cell
  if (layout.picture) {
    query = state.chosen[map.rows]
    key = patchAt(cell)
  } else {
    update(query)
    drawMap(query, key)
  }
  const weight = percent(weightRow(map, state.layer, state.head, query)[key] / 255)
  const head = `Layer ${state.layer} head ${state.head}`
  const from = describeToken(map.rows, query)
  const to = describeToken(map.columns, key)
  element("description").textContent = `${head}: ${from} attends to ${to} (${weight}).`
}
canvas.onpointerleave = () => update()
canvas.onclick = (event) => {
  const cell = cellAt(event)
  if (cell) selectToken(currentMap().rows, layout.picture ? patchAt(cell) : cell[0])
}

// ---- The logit lens

const lensPosition = () => clamp(state.chosen[data.lens.text], 0, data.lens.count - 1)
const predictionLabel = (layer, position, n) =>
  isolate(visibleLabel(data.lens.names[data.lens.best[layer][position][n]]))
// Index 0 of the logit lens is the embeddings, index n is layer n - 1.
const layerName = (layer) => (layer ? `layer ${layer - 1}` : "embeddings")

function buildLens() {
  if (!data.lens) return
  const lens = data.lens
  const layers = range(lens.best.length).reverse()
  const positions = range(lens.count)
  const columnHeaders = positions.map((position) => {
    const label = isImage(lens.text)
      ? "class"
      : visibleLabel(data.texts[lens.text].labels[position])
    return createElement("th", { scope: "col" }, label)
  })
  const lensRow = (layer) => {
    const cells = positions.map((position) => {
      const title = percent(lens.chances[layer][position][0])
      return createElement("td", { title }, predictionLabel(layer, position, 0))
    })
    const header = createElement("th", { scope: "row" }, layerName(layer))
    return createElement("tr", {}, header, ...cells)
  }
  element("layers").replaceChildren(
    createElement("thead", {}, createElement("tr", {}, createElement("th"), ...columnHeaders)),
    createElement("tbody", {}, ...layers.map(lensRow)),
  )
  // Return the [layer, position] of the table cell under the pointer, or null.
  const cellAtEvent = (event) => {
    const cell = event.target.closest("td")
    return cell && [layers[cell.parentNode.rowIndex - 1], cell.cellIndex - 1]
  }
  element("layers").onmouseover = (event) => {
    const cell = cellAtEvent(event)
    if (cell) describePredictions(...cell)
  }
  element("layers").onmouseleave = () => describePredictions(layers[0], lensPosition())
  element("layers").onclick = (event) => {
    const cell = cellAtEvent(event)
    if (!cell) return
    selectToken(lens.text, cell[1])
    describePredictions(...cell)
  }
}
function describePredictions(layer, position) {
  const lens = data.lens
  const predictions = lens.best[layer][position].map((_, n) => {
    const probability = percent(lens.chances[layer][position][n])
    return `${predictionLabel(layer, position, n)} ${probability}`
  })
  const token = describeToken(lens.text, position)
  const source = layer ? layerName(layer) : "the embeddings alone"
  const sentence = `${lens.verb} ${token}, ${source}: ${predictions.join(", ")}.`
  element("lens-description").textContent = sentence
}

// ---- Contributions to the logit of a prediction

function updatePredictions() {
  if (!data.lens) return
  const position = lensPosition()
  const lastLayer = data.lens.best.length - 1
  for (const row of element("layers").rows)
    for (const [i, cell] of [...row.cells].entries()) {
      cell.classList.toggle("query", i == position + 1)
      if (cell.tagName != "TD") continue
      const probability = data.lens.chances[lastLayer - row.rowIndex + 1][i - 1][0]
      cell.style.backgroundColor = fillBehindText(probability)
    }
  describePredictions(lastLayer, position)
  if (!data.parts) return
  state.prediction = Math.min(state.prediction, data.parts.count - 1)
  const buttons = range(data.parts.count).map((n) => predictionButton(lastLayer, position, n))
  element("predictions").replaceChildren(...buttons)
  updateContributions(lastLayer, position)
}
function predictionButton(layer, position, n) {
  const properties = {
    type: "button",
    role: "radio",
    "aria-checked": n == state.prediction,
    tabIndex: n == state.prediction ? 0 : -1,
    onclick: () => {
      state.prediction = n
      updatePredictions()
      element("predictions").children[n].focus()
    },
  }
  const probability = percent(data.lens.chances[layer][position][n])
  const label = `${predictionLabel(layer, position, n)} ${probability}`
  return createElement("button", properties, label)
}
function updateContributions(layer, position) {
  const parts = data.parts
  const values = parts.names.map((_, i) => {
    const row = i * data.lens.count + position
    return parts.values[row * parts.count + state.prediction]
  })
  const sum = values.reduce((a, b) => a + b, 0)
  const order = [...values.keys()].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]))
  const shown = state.showAllContributions ? order : order.slice(0, NUM_CONTRIBUTIONS)
  const hidden = order.slice(shown.length)
  const bars = shown.map((i) => [parts.names[i], values[i]])
  if (hidden.length) {
    const hiddenSum = hidden.reduce((a, i) => a + values[i], 0)
    bars.push([{ kind: `sum of ${hidden.length} others` }, hiddenSum])
  }
  const min = Math.min(0, ...bars.map(([, value]) => value))
  const max = Math.max(1e-9, ...bars.map(([, value]) => value))
  const items = bars.map(([part, value]) => contributionItem(part, value, min, max))
  element("contributions").replaceChildren(...items)
  const logit = parts.logits[position][state.prediction].toFixed(3)
  const label = predictionLabel(layer, position, state.prediction)
  element("sum").textContent =
    `The ${values.length} contributions add up to ${sum.toFixed(3)}. ` +
    `The logit of “${label}” is ${logit}.`
  element("more").hidden = order.length <= NUM_CONTRIBUTIONS
  element("more").textContent = state.showAllContributions
    ? "Show only the largest contributions"
    : "Show all contributions"
}
function partName(part) {
  if (part.head != null) return headName(part.kind, part.layer, part.head)
  if (part.layer != null) return `layer ${part.layer} feed-forward`
  return part.kind
}
function contributionItem(part, value, min, max) {
  const share = (x) => (100 * x) / (max - min)
  const name = createElement("span", { className: "name" })
  const map = part.head == null ? -1 : data.maps.findIndex((m) => m.part == part.kind)
  if (map < 0) name.append(partName(part))
  else {
    const onclick = () => openHead(map, part.layer, part.head)
    name.append(createElement("button", { type: "button", onclick }, partName(part)))
  }
  const left = share(Math.min(0, value) - min)
  const bar = createElement("i", {
    className: value < 0 ? "negative" : "",
    style: `left:${left}%; width:${share(Math.abs(value))}%`,
  })
  return createElement(
    "li",
    {},
    name,
    createElement("span", { className: "bar", style: `--zero:${share(-min)}%` }, bar),
    createElement("span", { className: "n" }, signed(value)),
  )
}
element("more").onclick = () => {
  state.showAllContributions = !state.showAllContributions
  updatePredictions()
}

// ---- Head types

function describeHeadTypes(map, layer, head) {
  const scores = data.kinds && data.kinds.maps[map]
  if (!scores) return ""
  const weights = Object.entries(data.kinds.names).map(
    ([type, description]) => `${percent(scores[type][layer][head])} to ${description}`,
  )
  return ` Mean attention weights on repeated random tokens: ${weights.join(", ")}.`
}
function buildHeadTypes() {
  if (!data.kinds) return
  const columns = Object.keys(data.kinds.names).map((type) => {
    const items = highestScores(type).map(headTypeItem)
    const title = createElement("h3", {}, data.kinds.titles[type])
    return createElement("div", {}, title, createElement("ol", {}, ...items))
  })
  element("head-types").replaceChildren(...columns)
}
function highestScores(type) {
  const all = []
  for (const [map, scores] of Object.entries(data.kinds.maps))
    for (const [layer, heads] of scores[type].entries())
      for (const [head, score] of heads.entries()) all.push({ score, map: +map, layer, head })
  return all.sort((a, b) => b.score - a.score).slice(0, 5)
}
function headTypeItem({ score, map, layer, head }) {
  const hasSeveralMaps = Object.keys(data.kinds.maps).length > 1
  const prefix = hasSeveralMaps ? data.maps[map].name + " " : ""
  const properties = { type: "button", onclick: () => openHead(map, layer, head) }
  return createElement(
    "li",
    {},
    createElement("button", properties, `${prefix}${layer}.${head}`),
    createElement("span", { className: "bar", style: `--share:${100 * score}%` }),
    createElement("span", { className: "n" }, score.toFixed(2)),
  )
}

// ---- The page

document.title = data.title
element("about").textContent = data.about
for (const name of ["lens", "parts", "kinds"]) {
  element(name + "-how").textContent = data.how[name]
  element(name).hidden = !data.how[name]
}
for (const id of ["maps", "predictions", "scales"]) element(id).className = "choice"
element("maps").hidden = data.maps.length < 2
for (const [i, map] of data.maps.entries()) {
  const properties = { type: "button", role: "radio", onclick: () => openMap(i, 0, 0) }
  element("maps").append(createElement("button", properties, map.title))
}
for (const { name, title } of shading.scales) {
  const properties = { type: "button", role: "radio", onclick: () => selectScale(name) }
  element("scales").append(createElement("button", properties, title))
}
for (const id of ["maps", "predictions", "scales"])
  element(id).onkeydown = (event) =>
    handleArrowKey(event, (down, right) => {
      const buttons = [...element(id).children]
      const index = buttons.indexOf(document.activeElement) + down + right
      const next = (index + buttons.length) % buttons.length
      buttons[next].click()
      element(id).children[next].focus()
    })
function redraw() {
  readColors()
  drawLegend()
  drawGrid()
  update()
  updatePredictions()
}
readColors()
buildLens()
buildHeadTypes()
openMap(state.map, state.layer, state.head)
updatePredictions()
// With a mouse, the arrow keys move between heads at once.
if (matchMedia("(hover: hover)").matches) selectHead(state.layer, state.head, "without scrolling")
matchMedia("(prefers-color-scheme: dark)").onchange = redraw
let pendingFrame = 0
new ResizeObserver(() => {
  cancelAnimationFrame(pendingFrame)
  pendingFrame = requestAnimationFrame(() => update())
}).observe(element("stage"))
