"use strict";
// The albums of a farm: filter, search, order and pages over rows that come as scripts (gallery.py says how), since a page
// opened as a file may load nothing else. Text from the data is only ever set as textContent or as an attribute.
(() => {
  const PER_PAGE = 48, EVERY_MS = 10000, LATE_MS = 120000;
  const [NAME, FOLDER, STATE, REASON, SECONDS, FINISHED, ATTEMPTS, LINKS, PICTURE, FIGURES] = Array(10).keys();
  const byId = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  let summary = null;
  const files = []; // index of a file of rows -> { hash, figures, rows }
  let found = []; // the rows that the filter lets through, in order, as [file, row]
  let drawn = ""; // what the cards on the page were made of
  const USUAL = { state: "", q: "", sort: "name", down: "", page: 1 }; // kept in the address where it differs
  const view = { ...USUAL };

  // ---- Reading -----------------------------------------------------------------------------------------------------
  const load = (address) => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    const end = (action) => () => { script.remove(); action(); };
    script.onload = end(resolve);
    script.onerror = end(() => reject(new Error(address.split("?")[0] + " cannot be read")));
    document.head.append(script);
  });
  let arrived = null;
  globalThis.gallerySummary = (data) => { arrived = data; };
  globalThis.galleryRows = (index, figures, rows) => { files[index] = { hash: "", figures, rows }; };

  const refresh = async () => {
    let problem = "";
    try {
      await load("gallery/summary.js?" + Date.now());
      summary = arrived;
      header();
      files.length = Math.min(files.length, summary.files.length);
      const changed = [...summary.files.entries()].filter(([index, [, hash]]) => !files[index] || files[index].hash !== hash);
      const ends = await Promise.allSettled(changed.map(async ([index, [name, hash]]) => {
        await load("gallery/" + name + "?" + hash);
        files[index].hash = hash;
      }));
      if (changed.length || document.body.dataset.state !== "ready") draw();
      const broken = ends.find((end) => end.status === "rejected");
      if (broken) throw broken.reason;
    } catch (error) {
      problem = error.message + (summary ? "; the page shows what could be read." : ": nothing is written yet, or it is gone.");
    }
    byId("problem").textContent = problem;
    byId("problem").hidden = !problem;
    document.body.dataset.state = problem ? "failed" : "ready";
    if (problem || !summary.over) setTimeout(refresh, EVERY_MS);
  };

  // ---- Header ------------------------------------------------------------------------------------------------------
  const duration = (seconds) => {
    if (seconds < 60) return Math.round(seconds) + " s";
    const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
    if (minutes < 60) return minutes + " min";
    return days ? days + " d " + (hours % 24) + " h" : hours + " h " + (minutes % 60) + " min";
  };
  const count = (number) => number.toLocaleString("en");
  const header = () => {
    const counts = Object.fromEntries(summary.states.map((state, index) => [state, summary.counts[index]]));
    const total = summary.counts.reduce((sum, number) => sum + number, 0);
    const rate = summary.albums_per_hour;
    const rows = [
      ...["done", "running", "failed", "waiting"].map((state) => [state, count(counts[state])]),
      ["albums per hour", rate === null ? "–" : count(Number(rate.toFixed(rate < 10 ? 1 : 0)))],
      ["time left", summary.over ? "–" : summary.seconds_left === null ? "unknown" : duration(summary.seconds_left)],
      ["elapsed", duration(summary.elapsed_s || 0)],
      ["packs at work", count(summary.workers)],
      ["GPU", summary.gpu_percent === null ? "–" : summary.gpu_percent.toFixed(0) + " %"],
      ["GPU memory", summary.gpu_memory_gib === null ? "–" : summary.gpu_memory_gib.toFixed(1) + " GiB"],
      ["memory", summary.memory_gib === null ? "–" : summary.memory_gib.toFixed(1) + " GiB"],
    ];
    byId("figures").replaceChildren(...rows.map(([label, value]) => {
      const cell = make("div");
      cell.append(make("dt", "", label), make("dd", "", value));
      return cell;
    }));
    const state = !summary.over ? "running" : counts.failed ? "failed" : "done";
    byId("status").className = "state " + state;
    byId("status").textContent = state === "failed" ? "done, " + count(counts.failed) + " failed" : state;
    let x = 0;
    byId("progress").replaceChildren(...["done", "failed", "running"].map((name) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const width = total ? 1000 * counts[name] / total : 0;
      for (const [key, value] of Object.entries({ class: name, x, width, y: 0, height: 10 })) bar.setAttribute(key, value);
      x += width;
      return bar;
    }));
    const written = new Date(summary.written_at);
    const late = !summary.over && Date.now() - written > LATE_MS;
    const doubt = late ? ": nothing has been written since, so the farm may have stopped." : ".";
    byId("written").textContent = "As of " + written.toLocaleString() + doubt;
    byId("failures").hidden = !summary.failures.length;
    byId("failures").querySelector("summary").textContent = "Latest failures (" + summary.failures.length + ")";
    byId("failures").querySelector("ul").replaceChildren(...summary.failures.map(([name, reason]) => {
      const item = make("li");
      item.append(make("b", "", name), reason);
      return item;
    }));
  };

  // ---- Filter and order --------------------------------------------------------------------------------------------
  const figureOf = (file, row, key) => {
    const column = file.figures.indexOf(key);
    return column < 0 ? null : row[FIGURES + column] ?? null;
  };
  const figureAbout = (key) => summary.figures[key] || { title: key, arrow: "", digits: 3, down: false };
  const valueOf = () => {
    switch (view.sort) {
      case "name": return (file, row) => row[NAME];
      case "seconds": return (file, row) => row[SECONDS] || null;
      case "finished": return (file, row) => row[FINISHED] || null;
      default: return (file, row) => figureOf(file, row, view.sort);
    }
  };
  const choices = () => {
    const keys = new Set(files.flatMap((file) => file ? file.figures : []));
    const options = [["name", "name"], ["finished", "time finished"], ["seconds", "time taken"],
      ...[...keys].map((key) => [key, (figureAbout(key).title + " " + figureAbout(key).arrow).trim()])];
    const select = byId("sort");
    if (select.dataset.keys !== JSON.stringify(options)) {
      select.dataset.keys = JSON.stringify(options);
      select.replaceChildren(...options.map(([key, label]) => new Option(label, key)));
    }
    if (!options.some(([key]) => key === view.sort)) view.sort = "name";
    select.value = view.sort;
  };
  const filter = () => {
    const words = view.q.trim().toLowerCase(), counts = summary.states.map(() => 0), wanted = summary.states.indexOf(view.state);
    if (wanted < 0) view.state = "";
    const value = valueOf(), kept = [];
    let all = 0;
    for (const file of files) for (const row of file ? file.rows : []) {
      if (words && !row[NAME].toLowerCase().includes(words) && !(row[REASON] && row[REASON].toLowerCase().includes(words))) continue;
      counts[row[STATE]] += 1;
      all += 1;
      if (wanted < 0 || row[STATE] === wanted) kept.push([file, row, value(file, row)]);
    }
    const sign = view.down ? -1 : 1;
    // Albums without a value come last in either order.
    kept.sort(([, , a], [, , b]) => a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign);
    found = kept;
    for (const button of document.querySelectorAll(".states button")) {
      button.setAttribute("aria-pressed", String(button.dataset.state === view.state));
      const index = summary.states.indexOf(button.dataset.state);
      button.querySelector(".count").textContent = count(index < 0 ? all : counts[index]);
    }
  };

  // ---- Cards -------------------------------------------------------------------------------------------------------
  const card = ([file, row]) => {
    const state = summary.states[row[STATE]];
    const folder = summary.albums + "/" + (row[FOLDER] || encodeURIComponent(row[NAME])) + "/";
    const item = make("li"), figure = make("figure", "album"), caption = make("figcaption");
    const linked = summary.links.filter((_, index) => row[LINKS] & (1 << index));
    const report = linked.length ? folder + linked[0][0] : "";
    const thumb = make(report ? "a" : "span", "thumb");
    if (report) { thumb.href = report; thumb.tabIndex = -1; }
    if (row[PICTURE]) {
      const image = make("img");
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = "Avatar of " + row[NAME];
      image.src = folder + summary.picture + "?" + row[PICTURE];
      // The picture is a strip of square views; the pointer's place chooses one of them.
      thumb.addEventListener("pointermove", (event) => {
        const last = Math.round(image.naturalWidth / image.naturalHeight) - 1;
        const share = Math.min(0.999, Math.max(0, (event.clientX - thumb.getBoundingClientRect().left) / thumb.clientWidth));
        image.style.objectPosition = (last > 0 ? 100 * Math.floor(share * (last + 1)) / last : 0) + "% 50%";
      });
      thumb.addEventListener("pointerleave", () => { image.style.objectPosition = ""; });
      thumb.append(image);
    } else thumb.append(make("span", "none", state === "failed" ? "no avatar" : state === "done" ? "no picture" : "not yet"));
    thumb.append(make("span", "state " + state, state));
    caption.append(make("span", "name", row[NAME]));
    caption.firstChild.title = row[NAME];
    if (row[REASON]) {
      caption.append(make("span", "why", row[REASON]));
      caption.lastChild.title = row[REASON];
    }
    const texts = summary.on_card.map((key) => [key, figureOf(file, row, key)]).filter(([, value]) => value !== null)
      .map(([key, value]) => figureAbout(key).title + " " + value.toFixed(figureAbout(key).digits));
    if (row[SECONDS]) texts.push(duration(row[SECONDS]));
    if (row[ATTEMPTS] > 1) texts.push(row[ATTEMPTS] + " attempts");
    if (texts.length) caption.append(make("span", "sub", texts.join(" · ")));
    if (linked.length) {
      const links = make("span", "links");
      for (const [path, word] of linked) {
        const link = make("a", "", word);
        link.href = folder + path;
        link.setAttribute("aria-label", word + " of " + row[NAME]);
        links.append(link);
      }
      caption.append(links);
    }
    figure.append(thumb, caption);
    item.append(figure);
    return item;
  };
  const draw = () => {
    choices();
    filter();
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    view.page = Math.min(Math.max(1, view.page), pages);
    const shown = found.slice((view.page - 1) * PER_PAGE, view.page * PER_PAGE);
    byId("found").textContent = found.length ? count(found.length) + (found.length === 1 ? " album" : " albums") : "No album is like that.";
    byId("pager").hidden = pages === 1;
    byId("pages").textContent = count(pages);
    byId("page").max = pages;
    byId("page").value = view.page;
    byId("pager").querySelector('[data-step="-1"]').disabled = view.page === 1;
    byId("pager").querySelector('[data-step="1"]').disabled = view.page === pages;
    byId("direction").textContent = view.down ? "↓" : "↑";
    if (byId("search").value !== view.q) byId("search").value = view.q;
    // Cards that stay the same are left alone: no flicker when new rows arrive.
    const key = JSON.stringify([summary.links, shown.map(([file, row]) => [file.figures, row])]);
    if (key !== drawn) byId("albums").replaceChildren(...shown.map(card));
    drawn = key;
    const hash = new URLSearchParams();
    for (const [name, usual] of Object.entries(USUAL)) if (view[name] !== usual) hash.set(name, view[name]);
    const text = hash.toString() && "#" + hash;
    if (text !== location.hash) history.replaceState(null, "", location.pathname + location.search + text);
  };
  const change = (news) => {
    Object.assign(view, { page: 1 }, news);
    if (summary) draw();
  };

  const readHash = () => {
    const hash = new URLSearchParams(location.hash.slice(1));
    for (const [name, usual] of Object.entries(USUAL)) view[name] = hash.get(name) || usual;
    view.page = parseInt(view.page, 10) || 1;
  };
  addEventListener("hashchange", () => { readHash(); if (summary) draw(); });
  document.querySelector(".states").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) change({ state: button.dataset.state });
  });
  byId("search").addEventListener("input", (event) => change({ q: event.target.value }));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("sort").addEventListener("change", (event) => {
    const sort = event.target.value;
    // The best, the newest and the slowest first: that is what one looks for.
    const down = sort === "finished" || sort === "seconds" || (sort !== "name" && figureAbout(sort).down);
    change({ sort, down: down ? "1" : "" });
  });
  byId("direction").addEventListener("click", () => change({ down: view.down ? "" : "1" }));
  byId("pager").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    change({ page: view.page + Number(button.dataset.step) });
    byId("h-albums").scrollIntoView();
  });
  byId("page").addEventListener("change", (event) => change({ page: parseInt(event.target.value, 10) || 1 }));
  readHash();
  refresh();
})();
