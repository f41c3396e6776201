// The explorer of book/explorer.ipynb: what methods keep of a picture, chosen here, in the browser, as `dart` chooses it.
// dartExplorer.choose is pure and is tested against dart.DART, dart.FastV and dart.Random; the rest draws and listens.
globalThis.dartExplorer = (() => {
  const here = globalThis.document?.currentScript?.src;
  const SIDE = 24, PATCHES = SIDE * SIDE, PIXELS = 14, ATTENTION = -1;
  const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];

  // ---------------------------------------------------------------------------------------------- numbers

  const buffer = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
  const joined = (Kind, texts) => {
    const parts = texts.map(text => new Kind(buffer(text)));
    const whole = new Kind(parts.reduce((length, part) => length + part.length, 0));
    parts.reduce((start, part) => (whole.set(part, start), start + part.length), 0);
    return whole;
  };

  // What methods look at: of one picture, one of its questions and one layer. Image tokens first, then the text behind them.
  function decode(index, picture, question, layer, seed = 0) {
    const image = picture.layers[layer], text = picture.questions[question].layers[layer];
    return {
      states: joined(Int8Array, [image.states, text.states]), keys: joined(Float32Array, [image.keys, text.keys]),
      attention: joined(Float32Array, [text.attention]), order: joined(Uint16Array, [index.random[seed]]), length: index.length,
    };
  }

  function cosine({states, length, keys}, a, b) {
    const width = states.length / keys.length;
    let sum = 0;
    for (let i = 0; i < width; i++) sum += states[a * width + i] * states[b * width + i];
    return sum / length ** 2;
  }

  const range = (start, end) => Array.from({length: end - start}, (_, i) => start + i);
  const falling = (positions, scores) => [...positions].sort((a, b) => scores[b] - scores[a]);   // stable: the earlier first

  // Which image tokens stay: {first: pivots of the image, turns: [{pivot, tokens}]}, tokens in the order in which they are taken.
  function choose(features, {method, keep, imagePivots = 4, textPivots = 4}) {
    const images = features.attention.length, budget = Math.min(keep, images);
    if (method === "FastV") return {first: [], turns: [{pivot: null, tokens: falling(range(0, images), features.attention).slice(0, budget)}]};
    if (method === "Random") return {first: [], turns: [{pivot: null, tokens: [...features.order.slice(0, budget)]}]};
    const text = falling(range(images, features.keys.length), features.keys).slice(0, textPivots);
    const first = falling(range(0, images), features.keys).slice(0, Math.min(text.length ? imagePivots : Math.max(imagePivots, 1), budget));
    const pivots = [...first, ...text].sort((a, b) => a - b);
    const share = budget - first.length, each = Math.floor(share / pivots.length);
    let free = range(0, images).filter(token => !first.includes(token));
    const turns = pivots.map((pivot, turn) => {
      const unlike = Object.fromEntries(free.map(token => [token, -cosine(features, pivot, token)]));
      const tokens = falling(free, unlike).slice(0, each + (turn < share - each * pivots.length));
      const taken = new Set(tokens);
      free = free.filter(token => !taken.has(token));
      return {pivot, tokens};
    });
    return {first: first.sort((a, b) => a - b), turns};
  }

  // ---------------------------------------------------------------------------------------------- the page

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  const script = source => new Promise((done, failed) =>
    document.head.append(make("script", {src: source, onload: done, onerror: () => failed(new Error(`${source} is not there`))})));

  const shade = value => {
    const at = Math.max(0, Math.min(1, value)) * (CIVIDIS.length - 1), low = Math.min(Math.floor(at), CIVIDIS.length - 2);
    return `rgb(${CIVIDIS[low].map((channel, i) => Math.round(channel + (at - low) * (CIVIDIS[low + 1][i] - channel)))})`;
  };
  const rising = scores => falling(range(0, scores.length), scores).reduce((ranks, token, rank) => (ranks[token] = 1 - rank / scores.length, ranks), []);
  const two = number => number.toFixed(2).replace("-", "\u2212");
  const place = token => `row ${Math.floor(token / SIDE) + 1}, column ${token % SIDE + 1}`;
  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  // `fixed`: settings that somebody else controls (the notebook); then there are no controls but those of the patches.
  function mount(root, index, load, fixed = null) {
    const state = {picture: index.pictures[0].name, question: 0, method: "DART", keep: 64, layer: 2, imagePivots: 4, textPivots: 4, seed: 0,
      subject: null, step: Infinity, ...fixed};
    let picture, features, chosen, order, image, down, timer = null;

    // ---- controls
    const id = name => `explorer-${name}`;
    const set = change => { stop(); Object.assign(state, {subject: null, step: Infinity}, change); refresh(); };
    const choice = (name, label, options, change) => {
      const select = make("select", {id: id(name), onchange: () => set(change(select.value))}, ...options.map(([value, text]) => make("option", {value}, text)));
      select.value = state[name];
      return make("label", {for: id(name)}, make("span", {}, label), select);
    };
    const numbers = values => values.map(value => [value, value]);
    const dial = (name, label, values) => {
      const shown = make("output", {for: id(name)}, state[name]);
      const input = make("input", {type: "range", id: id(name), min: 0, max: values.length - 1, value: values.indexOf(state[name]), "aria-valuetext": state[name],
        oninput: () => { shown.value = values[input.value]; input.setAttribute("aria-valuetext", shown.value); set({[name]: values[input.value]}); }});
      return make("label", {for: id(name), class: "wide"}, make("span", {}, label, " ", shown), input);
    };
    const methods = make("fieldset", {class: "wide"}, make("legend", {}, "Method"), ...["DART", "FastV", "Random"].map(name => make("label", {},
      make("input", {type: "radio", name: id("method"), value: name, checked: name === state.method, onchange: () => set({method: name})}), make("span", {}, name))));
    const asked = make("select", {id: id("question"), onchange: () => set({question: +asked.value})});
    const pivots = make("div", {class: "group"}, dial("imagePivots", "Image pivots", range(1, 9)), dial("textPivots", "Text pivots", range(0, 5)));
    const seed = choice("seed", "Draw", Object.keys(index.random).map(each => [each, `seed ${each}`]), value => ({seed: +value}));
    const controls = make("div", {class: "controls"},
      choice("picture", "Picture", index.pictures.map(each => [each.name, each.title]), value => ({picture: value, question: 0})),
      choice("layer", "Before layer", numbers(index.layers), value => ({layer: +value})),
      make("label", {for: id("question"), class: "wide"}, make("span", {}, "Question"), asked), methods, dial("keep", "Patches kept", index.budgets), pivots, seed);

    // ---- pictures
    const canvas = label => make("canvas", {width: 2 * SIDE * PIXELS, height: 2 * SIDE * PIXELS, tabindex: 0, role: "application", "aria-label": label,
      "aria-describedby": id("reading"), onkeydown: move, onpointerdown: event => { down = event; }, onpointermove: point, onclick: point});
    const stays = canvas("What stays of the picture. Arrow keys move over its patches."), heat = canvas("Heat map of duplication. Arrow keys move over the patches.");
    const aboutStays = make("figcaption"), aboutHeat = make("figcaption");
    const bar = make("div", {class: "bar", "aria-hidden": "true"}), low = make("span"), high = make("span");
    bar.style.background = `linear-gradient(90deg, ${CIVIDIS.map(color => `rgb(${color})`)})`;
    const reading = make("p", {id: id("reading"), class: "reading", "aria-live": "polite"}), answer = make("p", {class: "answer", "aria-live": "polite"});
    const chips = make("div", {class: "chips", role: "group", "aria-label": "Look from a pivot"});
    const play = make("button", {type: "button", class: "play", onclick: () => timer ? stop() : start()});
    const scrub = make("input", {type: "range", min: 0, "aria-label": "How many patches are claimed", oninput: () => { const step = +scrub.value; stop(); goTo(step); }});
    root.replaceChildren(...(fixed ? [] : [controls, answer]),
      make("div", {class: "stages"}, make("figure", {}, stays, aboutStays), make("figure", {}, heat, make("div", {class: "scale"}, low, bar, high), aboutHeat)),
      chips, make("div", {class: "playback"}, play, scrub), reading);

    // ---- time
    function start() {
      if (state.step >= order.length) state.step = 0;
      timer = setInterval(() => {
        // whoever wants less motion sees a pivot's claims at once
        let next = state.step + 1;
        while (calm() && next < order.length && order[next].turn === order[next - 1].turn) next++;
        goTo(next);
        if (next >= order.length) stop();
      }, calm() ? 1500 : Math.max(40, Math.min(160, 9000 / order.length)));
      goTo(state.step);
    }
    function stop() { clearInterval(timer); timer = null; label(); }
    function goTo(step) {
      state.step = step;
      const now = order[Math.min(step, order.length) - 1];
      state.subject = now ? chosen.turns[now.turn].pivot ?? (state.method === "FastV" ? ATTENTION : state.subject) : opening();
      draw();
    }
    function label() {
      play.textContent = timer ? "❚❚ Pause" : {DART: "▶ Watch the pivots claim", FastV: "▶ Watch FastV choose", Random: "▶ Watch the draw"}[state.method];
      scrub.value = Math.min(state.step, order?.length ?? 0);
      scrub.setAttribute("aria-valuetext", `${scrub.value} of ${scrub.max}`);
    }

    // ---- pointing
    function look(subject) { state.subject = subject; draw(); }
    function point(event) {
      if (!features || timer) return;
      // a finger that moves up or down scrolls the page
      if (event.type === "pointermove" && event.pointerType === "touch" && Math.abs(event.clientX - down.clientX) <= Math.abs(event.clientY - down.clientY)) return;
      const box = event.currentTarget.getBoundingClientRect();
      const [row, column] = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map(part => Math.max(0, Math.min(SIDE - 1, Math.floor(part * SIDE))));
      if (state.subject !== row * SIDE + column) look(row * SIDE + column);
    }
    function move(event) {
      const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -SIDE], End: [0, SIDE], PageUp: [-SIDE, 0], PageDown: [SIDE, 0]}[event.key];
      if (!step || !features) return;
      event.preventDefault();
      stop();
      const from = isPatch(state.subject) ? state.subject : PATCHES / 2 + SIDE / 2;
      const [row, column] = [Math.floor(from / SIDE) + step[0], from % SIDE + step[1]].map(each => Math.max(0, Math.min(SIDE - 1, each)));
      look(row * SIDE + column);
    }

    // ---- from settings to what is shown
    async function refresh() {
      const wanted = state.picture;
      if (picture?.name !== wanted) {
        root.setAttribute("aria-busy", "true");
        const loaded = await load(wanted), drawn = new Image();
        drawn.src = loaded.image;
        await drawn.decode();
        if (state.picture !== wanted) return;
        [picture, image] = [loaded, drawn];
        asked.replaceChildren(...picture.questions.map((each, number) => make("option", {value: number}, each.text)));
        root.removeAttribute("aria-busy");
      }
      asked.value = state.question;
      pivots.hidden = state.method !== "DART";
      seed.hidden = state.method !== "Random";
      features = decode(index, picture, state.question, state.layer, state.seed);
      chosen = choose(features, state);
      order = chosen.turns.flatMap(({tokens}, turn) => tokens.map(token => ({token, turn})));
      scrub.max = order.length;
      state.subject ??= opening();
      tell();
      draw();
    }

    const opening = () => state.method === "FastV" ? ATTENTION : chosen.first[0] ?? PATCHES / 2 + SIDE / 2;
    const isPatch = subject => subject >= 0 && subject < PATCHES;
    const word = token => `“${picture.questions[state.question].tokens[token - PATCHES]}”`;

    function tell() {
      const {text, truth, answers} = picture.questions[state.question];
      const usual = state.method === "FastV" || (state.method === "DART" ? state.imagePivots === 4 && state.textPivots === 4 : state.seed === 0);
      if (!answers) answer.replaceChildren(make("b", {}, "No answer. "), "The small model reads scenes and was not made for photographs: look at their duplication only.");
      else if (!usual || !index.answered.includes(state.layer))
        answer.replaceChildren(make("b", {}, "Not computed beforehand. "), `Answers are here for layers ${index.answered.join(" and ")}, with 4 + 4 pivots and seed 0. For this one, run the page in JupyterLab.`);
      else {
        const said = answers[state.method][state.layer][index.budgets.indexOf(state.keep)], right = said === truth;
        answer.replaceChildren(make("q", {}, text), " ", make("b", {class: right ? "right" : "wrong"}, `${right ? "✓" : "✗"} ${said || "(nothing)"}`),
          ` ${right ? "right" : `wrong: it is ${truth}`}, with ${state.keep} of ${PATCHES} patches; with all of them it says ${answers.all}${answers.all === truth ? "" : ", wrong"}.`);
      }
      const chip = (subject, ...words) => make("button", {type: "button", "data-subject": subject, onclick: () => { stop(); look(subject); }}, ...words);
      chips.replaceChildren(...state.method === "FastV" ? [chip(ATTENTION, `attention of ${word(features.keys.length - 1)}`)]
        : chosen.turns.filter(turn => turn.pivot !== null).map(({pivot, tokens}, turn) => chip(pivot, make("b", {}, turn + 1), ` ${isPatch(pivot) ? "patch" : word(pivot)} claims ${tokens.length}`)));
    }

    function draw() {
      const {subject} = state, taken = order.slice(0, state.step), kept = new Set([...chosen.first, ...taken.map(each => each.token)]);
      const turn = chosen.turns.findIndex(each => each.pivot === subject), claimed = taken.filter(each => each.turn === turn).map(each => each.token);
      const attends = subject === ATTENTION;
      // attention falls so steeply that only its order can be seen
      const values = attends ? rising(features.attention) : range(0, PATCHES).map(token => cosine(features, subject, token)), least = Math.min(...values);
      paint(stays, (pen, size) => {
        fade(pen);
        for (const token of kept) pen.drawImage(image, ...corner(token, image.width / SIDE), ...corner(token, size));
        claimed.forEach(token => frame(pen, token, size, "#fff", "#1f3b63", 1));
        chosen.turns.forEach(({pivot}, number) => { if (pivot !== null && isPatch(pivot)) badge(pen, pivot, size, number + 1); });
        if (isPatch(subject)) frame(pen, subject, size, "#000", "#fff", 2);
      });
      paint(heat, (pen, size) => {
        pen.drawImage(image, 0, 0, heat.width, heat.height);
        pen.globalAlpha = 0.82;
        values.forEach((value, token) => { pen.fillStyle = shade((value - least) / (1 - least || 1)); pen.fillRect(...corner(token, size)); });
        pen.globalAlpha = 1;
        claimed.forEach(token => frame(pen, token, size, "#fff", "#1f3b63", 1));
        if (isPatch(subject)) frame(pen, subject, size, "#000", "#fff", 2);
      });
      [low.textContent, high.textContent] = attends ? ["least", "most"] : [two(least), "1"];
      const from = isPatch(subject) ? `the patch in ${place(subject)}` : attends ? "" : `the word ${word(subject)}`;
      aboutStays.textContent = `${kept.size} of ${PATCHES} patches stay in colour${chosen.first.length ? "; numbers are pivots" : ""}.`;
      aboutHeat.textContent = attends ? "Attention of the last word, by rank." : `Duplication (cosine) with ${from}${turn >= 0 ? "; framed is what this pivot claims" : ""}.`;
      const same = values.filter((value, token) => value >= 0.8 && token !== subject).length;
      const by = chosen.turns.findIndex(each => each.tokens.includes(subject)) + 1;
      const fate = turn >= 0 ? `It is pivot ${turn + 1}.` : !isPatch(subject) ? "" : !kept.has(subject) ? "It goes." : state.method === "DART" ? `It stays, claimed by pivot ${by}.` : "It stays.";
      reading.textContent = timer ? `One after the other: ${chosen.first.length ? "the pivots stay, and " : ""}more and more is claimed.`
        : attends ? `FastV keeps the ${kept.size} patches that the last word attends to most.`
        : `${from[0].toUpperCase()}${from.slice(1)}. ${fate} ${same === 1 ? "1 patch duplicates" : `${same} patches duplicate`} it at 0.8 or more.`;
      for (const chip of chips.children) chip.setAttribute("aria-pressed", +chip.dataset.subject === subject);
      label();
    }

    function paint(canvas, with_) {
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, canvas.width, canvas.height);
      with_(pen, canvas.width / SIDE);
    }
    const corner = (token, size) => [token % SIDE * size, Math.floor(token / SIDE) * size, size, size];
    function fade(pen) {
      pen.drawImage(image, 0, 0, stays.width, stays.height);
      pen.globalCompositeOperation = "saturation";
      pen.fillStyle = "#888";
      pen.fillRect(0, 0, stays.width, stays.height);
      pen.globalCompositeOperation = "source-over";
      pen.globalAlpha = 0.72;
      pen.fillStyle = getComputedStyle(root).getPropertyValue("--faded") || "#fff";
      pen.fillRect(0, 0, stays.width, stays.height);
      pen.globalAlpha = 1;
    }
    function frame(pen, token, size, outer, inner, width) {
      const [x, y] = corner(token, size);
      for (const [color, line] of [[outer, width + 3], [inner, width + 1]]) {
        pen.strokeStyle = color;
        pen.lineWidth = line;
        pen.strokeRect(x + 1, y + 1, size - 2, size - 2);
      }
    }
    function badge(pen, token, size, number) {
      const [x, y] = corner(token, size);
      frame(pen, token, size, "#fff", "#c8501b", 2);
      pen.fillStyle = "#c8501b";
      pen.fillRect(x + 2, y + 2, size - 4, size - 4);
      pen.fillStyle = "#fff";
      pen.font = `bold ${size * 0.75}px system-ui, sans-serif`;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillText(number, x + size / 2, y + size / 2 + 1);
    }

    // the theme may turn dark while one looks
    new MutationObserver(() => picture && draw()).observe(document.documentElement, {attributeFilter: ["data-theme"]});
    const ready = refresh();
    ready.catch(error => root.replaceChildren(make("p", {role: "alert"}, `The explorer cannot start: ${error.message}. Build the book again: its page writes these files.`)));
    return ready;
  }

  const api = {choose, decode, mount, pictures: {}, index: null};
  async function begin(root) {
    const file = name => new URL(`explorer/${name}.mjs`, here).href;
    await script(file("index"));
    return mount(root, api.index, async name => (api.pictures[name] ?? await script(file(name)), api.pictures[name]));
  }
  if (here) addEventListener("DOMContentLoaded", () => { for (const root of document.querySelectorAll(".explorer[data-static]")) begin(root); });
  return api;
})();
