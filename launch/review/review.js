"use strict";
// One prepared album: its photos with their masks, and a person's decisions about it. page.py says which addresses the
// controls have; here every control is found by its address, which is its id. Text of the album is only ever set as
// textContent, as a value or as an attribute.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const controls = new Map(); // address -> { get, set, input }
  let saved = {}; // address -> value, as the server has it
  let leaving = false, ended = false, busy = false;

  // ---- Controls ----------------------------------------------------------------------------------------------------
  const register = (address, input, get, set) => {
    controls.set(address, { input, get, set });
    input.addEventListener(input.type === "text" ? "input" : "change", () => changed(address));
  };
  const textControl = (address, input) => {
    input.id = address;
    register(address, input, () => input.value, (value) => { input.value = value; });
    return input;
  };
  const checkbox = (address, ...label) => {
    const input = make("input");
    input.type = "checkbox";
    input.id = address;
    register(address, input, () => input.checked, (value) => { input.checked = value; });
    return make("label", "choice", input, ...label);
  };
  const keepOrDrop = (address, what) => {
    const group = make("fieldset", "");
    group.id = address;
    group.setAttribute("aria-label", what + ": keep or drop");
    const radios = [["keep", "Keep"], ["drop", "Drop"]].map(([value, label]) => {
      const input = make("input");
      Object.assign(input, { type: "radio", name: address, value });
      group.append(make("label", "choice", input, label));
      return input;
    });
    const set = (value) => { radios[value ? 0 : 1].checked = true; };
    register(address, radios[0], () => radios[0].checked, set);
    radios[1].addEventListener("change", () => changed(address));
    return group;
  };
  const options = (select, pairs) => select.replaceChildren(...pairs.map(([value, label]) => new Option(label, value)));
  const errorOf = (address, input) => {
    const place = make("span", "why");
    place.id = address + ".error";
    input.setAttribute("aria-describedby", place.id);
    return place;
  };
  const swatch = (name, colour) => {
    const drawing = document.createElementNS(SVG, "svg"), rect = document.createElementNS(SVG, "rect");
    drawing.setAttribute("class", name);
    drawing.setAttribute("viewBox", "0 0 10 10");
    drawing.setAttribute("aria-hidden", "true");
    for (const [key, value] of Object.entries({ width: 10, height: 10, rx: 2, fill: colour })) rect.setAttribute(key, value);
    drawing.append(rect);
    return drawing;
  };
  const count = (number, one, many) => number + " " + (number === 1 ? one : many);

  // ---- The page's parts, made once ---------------------------------------------------------------------------------
  const assetCard = (asset, index) => {
    const field = (key, label, list) => {
      const input = textControl("a" + index + "." + key, make("input"));
      input.type = "text";
      input.autocomplete = "off";
      input.spellcheck = key === "words";
      if (list) input.setAttribute("list", list);
      return make("label", "text", make("span", "", label), input, errorOf(input.id, input));
    };
    const show = make("input");
    Object.assign(show, { type: "checkbox", checked: true });
    show.dataset.paints = index;
    show.addEventListener("change", paint);
    const head = make("h3", "", swatch("swatch", asset.colour), make("span", "", asset.name), make("small", "", "in " + count(asset.photos, "photo", "photos")));
    const row = make("div", "row", keepOrDrop("a" + index + ".keep", asset.name), make("label", "choice", show, "Paint its masks"));
    const card = make("div", "card asset", head, field("name", "Name", "known-assets"), field("words", "Shape"), row);
    card.dataset.keep = "a" + index + ".keep";
    return make("li", "", card);
  };
  const photoCard = (photo, index, state) => {
    const stack = make("div", "stack"), picture = make("img");
    const image = (element, address, alt) => {
      Object.assign(element, { loading: "lazy", decoding: "async", alt });
      element.src = address;
      stack.append(element);
    };
    image(picture, "photo/" + index, "Photo " + photo.name);
    for (const asset of photo.painted) {
      const mask = make("img", "mask");
      mask.dataset.asset = asset;
      image(mask, "mask/" + index + "/" + asset, "");
    }
    const select = textControl("p" + index + ".view", make("select"));
    options(select, [["", "unknown"], ...state.views.map((view) => [view, view])]);
    const view = make("label", "view", make("span", "", "View"), select);
    const masks = make("div", "masks");
    masks.setAttribute("role", "group");
    masks.setAttribute("aria-label", "Masks of " + photo.name + " that are used");
    for (const [number, [name, asset]] of photo.masks.entries()) {
      const label = checkbox("p" + index + ".m" + number, ...(asset === null ? [] : [swatch("dot", state.assets[asset].colour)]), name);
      if (asset !== null) label.firstChild.dataset.mask = index + "/" + asset;
      masks.append(label);
    }
    const caption = make("figcaption", "", make("span", "name", photo.name));
    if (photo.about.length) caption.append(make("span", "sub", photo.about.join(", ")));
    caption.append(view, errorOf(select.id, select), masks, keepOrDrop("p" + index + ".keep", photo.name));
    const figure = make("figure", "", stack, caption);
    figure.dataset.keep = "p" + index + ".keep";
    return make("li", "", figure);
  };
  const list = (section, rows) => {
    byId(section).hidden = !rows.length;
    byId(section + "-list").replaceChildren(...rows);
  };
  const build = (state) => {
    document.title = state.name + ": review";
    byId("name").textContent = state.name;
    const figures = [["photos", state.photos.length], ["assets", state.assets.length], ["set aside", state.set_aside.length]];
    byId("figures").replaceChildren(...figures.map(([label, value]) => make("div", "", make("dt", "", label), make("dd", "", String(value)))));
    options(textControl("gender", byId("gender")), state.genders);
    byId("known-assets").replaceChildren(...state.known_assets.map((name) => new Option(name)));
    byId("assets").replaceChildren(...state.assets.map(assetCard));
    byId("photos").replaceChildren(...state.photos.map((photo, index) => photoCard(photo, index, state)));
    list("dropped", [
      ...state.dropped_assets.map((name, index) => make("li", "", checkbox("ra" + index, "asset " + name))),
      ...state.dropped_photos.map((name, index) => make("li", "", checkbox("rp" + index, "photo " + name))),
    ]);
    list("aside", state.set_aside.map(([name, reason]) => make("li", "", make("b", "", name), reason)));
    list("remarks", state.notes.map((note) => make("li", "", note)));
  };

  // ---- What is shown of the values ---------------------------------------------------------------------------------
  const paint = () => {
    const painted = new Set([...document.querySelectorAll("[data-paints]")].filter((box) => box.checked).map((box) => box.dataset.paints));
    for (const mask of document.querySelectorAll(".stack .mask")) {
      const used = document.querySelector('[data-mask="' + mask.getAttribute("src").slice(5) + '"]');
      mask.hidden = !painted.has(mask.dataset.asset) || !(used && used.checked);
    }
  };
  const paintAll = (on) => {
    for (const box of document.querySelectorAll("[data-paints]")) box.checked = on;
    paint();
  };
  const changes = () => Object.fromEntries([...controls].map(([address, control]) => [address, control.get()]).filter(([address, value]) => value !== saved[address]));
  const show = () => {
    for (const card of document.querySelectorAll("[data-keep]")) card.classList.toggle("gone", !controls.get(card.dataset.keep).get());
    paint();
    const number = Object.keys(changes()).length;
    byId("save").disabled = busy || ended || !number;
    if (number && !ended) say(count(number, "change", "changes") + " not saved", true);
  };
  const say = (text, warns) => {
    byId("status").textContent = text;
    byId("status").classList.toggle("changed", Boolean(warns));
  };
  const problem = (text) => {
    byId("problem").textContent = text;
    byId("problem").hidden = !text;
  };
  const setError = (address, text) => {
    const place = byId(address + ".error"), control = controls.get(address);
    if (place) place.textContent = text;
    if (control) control.input.setAttribute("aria-invalid", String(Boolean(text)));
  };
  const changed = (address) => {
    leaving = false;
    setError(address, "");
    setError("page", "");
    show();
    if (!Object.keys(changes()).length) say("");
  };
  const take = (state) => {
    saved = state.values;
    for (const [address, control] of controls) control.set(saved[address]);
    byId("command").textContent = state.command;
    byId("next").hidden = !state.pending;
    show();
  };

  // ---- Talking to the server ---------------------------------------------------------------------------------------
  const ask = async (address, body) => {
    const request = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let answer;
    try {
      answer = await fetch(address, request);
    } catch {
      throw new Error("The program behind this page does not answer: it has ended. Start it again with python -m launch review.");
    }
    const found = await answer.json().catch(() => ({ problem: "The program behind this page refused: " + answer.status + "." }));
    if (found.problem) throw new Error(found.problem);
    return found;
  };
  const attempt = async (work) => {
    if (busy || ended) return;
    busy = true;
    problem("");
    try {
      await work();
    } catch (error) {
      problem(error.message);
      byId("problem").scrollIntoView({ block: "center" });
    }
    busy = false;
    show();
  };
  const save = () => attempt(async () => {
    const sent = changes();
    for (const address of controls.keys()) setError(address, "");
    setError("page", "");
    const answer = await ask("save", sent);
    if (answer.errors) {
      for (const [address, text] of Object.entries(answer.errors)) setError(address, text);
      const first = controls.get(Object.keys(answer.errors)[0]);
      if (first) first.input.focus();
      return;
    }
    take(answer);
    say("Saved to " + answer.file);
  });
  const done = () => {
    const number = Object.keys(changes()).length;
    if (number && !leaving) {
      leaving = true;
      setError("page", count(number, "change is", "changes are") + " not saved. Save, or press Done again to end without.");
      return;
    }
    attempt(async () => {
      await ask("done", {});
      ended = true;
      setError("page", "");
      document.body.dataset.state = "ended";
      for (const input of document.querySelectorAll("input, select, button")) input.disabled = true;
      say("Ended. This page can be closed.");
    });
  };

  byId("save").addEventListener("click", save);
  byId("done").addEventListener("click", done);
  byId("show-all").addEventListener("click", () => paintAll(true));
  byId("show-none").addEventListener("click", () => paintAll(false));
  document.addEventListener("keydown", (event) => {
    if (event.key === "s" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(); }
  });
  addEventListener("beforeunload", (event) => { if (!ended && Object.keys(changes()).length) event.preventDefault(); });
  attempt(async () => {
    try {
      const state = await ask("state.json");
      build(state);
      take(state);
      say("");
      document.body.dataset.state = "ready";
    } catch (error) {
      document.body.dataset.state = "failed";
      throw error;
    }
  });
})();
