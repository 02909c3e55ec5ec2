"use strict";
// Interactive view of one textured mesh: plain WebGL, no library, no request. The data block's layout is that of pack_mesh in
// report_media.py. Everything else on the page works without this script.
(() => {
  const overlayToggle = document.getElementById("show-masks");
  if (overlayToggle) {
    const apply = () => document.body.classList.toggle("masks-on", overlayToggle.checked);
    overlayToggle.addEventListener("change", apply);
    apply();
  }

  const figure = document.getElementById("viewer");
  if (!figure) return;
  const canvas = figure.querySelector("canvas");
  const message = figure.querySelector(".viewer-message");
  const fail = (text) => {
    message.textContent = text + " The turntable below shows the same avatar, and avatar.glb opens in any 3D program.";
    message.hidden = false;
    canvas.hidden = true;
    figure.querySelectorAll(".viewer-bar button").forEach((button) => { button.disabled = true; });
    figure.dataset.state = "failed";
  };
  const gl = canvas.getContext("webgl2", { antialias: true }) || canvas.getContext("webgl", { antialias: true });
  if (!gl) return fail("This browser has no WebGL, so the interactive view cannot be shown.");
  const isWebgl2 = typeof WebGL2RenderingContext !== "undefined" && gl instanceof WebGL2RenderingContext;
  if (!isWebgl2 && !gl.getExtension("OES_element_index_uint")) return fail("This graphics driver has no 32-bit indices.");
  if (typeof DecompressionStream === "undefined") return fail("This browser is too old to unpack the mesh.");

  const VERTEX = `
    attribute vec3 position; attribute vec2 uv; attribute vec3 normal;
    uniform mat4 view, projection; uniform vec3 low, size; uniform float line;
    varying vec2 v_uv; varying vec3 v_normal; varying vec3 v_point;
    void main() {
      vec4 point = view * vec4(low + position * size, 1.0);
      v_uv = uv; v_normal = mat3(view) * normal; v_point = point.xyz;
      gl_Position = projection * point;
      gl_Position.z -= 0.002 * line * gl_Position.w;  // the wireframe lies a little in front of the surface
    }`;
  const FRAGMENT = `
    precision highp float;
    uniform sampler2D image; uniform float lit, textured, line;
    varying vec2 v_uv; varying vec3 v_normal; varying vec3 v_point;
    void main() {
      if (line > 0.5) { gl_FragColor = vec4(0.05, 0.14, 0.28, 1.0) * 0.55; return; }
      vec3 colour = mix(vec3(0.74, 0.73, 0.71), texture2D(image, v_uv).rgb, textured);
      vec3 n = normalize(v_normal);
      if (dot(n, v_point) > 0.0) n = -n;
      vec3 eye = normalize(-v_point);
      float key = max(dot(n, normalize(vec3(0.45, 0.65, 0.75))), 0.0);
      float fill = max(dot(n, normalize(vec3(-0.7, 0.1, 0.5))), 0.0);
      float sky = 0.5 + 0.5 * n.y;
      float shade = 0.44 + 0.16 * sky + 0.42 * key + 0.12 * fill;
      float gloss = 0.05 * pow(max(dot(reflect(-normalize(vec3(0.45, 0.65, 0.75)), n), eye), 0.0), 24.0);
      gl_FragColor = vec4(mix(colour, min(colour * shade + gloss, 1.0), lit), 1.0);
    }`;

  const about = JSON.parse(document.getElementById("mesh-about").textContent);
  const unpack = async () => {
    const text = atob(document.getElementById("mesh-data").textContent.trim());
    const packed = Uint8Array.from(text, (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = await new Response(stream).arrayBuffer();
    const v = about.vertices, t = about.triangles;
    const corners = new Int32Array(bytes, 16 * v, 3 * t);
    const indices = new Uint32Array(3 * t);
    for (let i = 0, last = 0; i < indices.length; i++) indices[i] = last = last + corners[i];
    return {
      positions: new Uint16Array(bytes, 0, 4 * v), uv: new Uint16Array(bytes, 8 * v, 2 * v),
      normals: new Int8Array(bytes, 12 * v, 4 * v), indices,
    };
  };
  const edgesOf = (indices) => {
    // Each edge once, although two triangles share it: drawn twice it would look twice as dark.
    const edges = new Set();
    for (let i = 0; i < indices.length; i++) {
      const a = indices[i], b = indices[i % 3 === 2 ? i - 2 : i + 1];
      edges.add(Math.min(a, b) * about.vertices + Math.max(a, b));
    }
    const lines = new Uint32Array(2 * edges.size);
    let j = 0;
    for (const edge of edges) {
      lines[j++] = Math.floor(edge / about.vertices);
      lines[j++] = edge % about.vertices;
    }
    return lines;
  };

  // Orbit camera: angles in radians, distance and target in metres.
  const middle = [0, 1, 2].map((axis) => about.low[axis] + about.size[axis] / 2);
  const radius = 0.51 * Math.hypot(...about.size);
  const FOV = 30 * Math.PI / 180;
  const options = { lit: true, textured: true, wire: false, turning: !matchMedia("(prefers-reduced-motion: reduce)").matches };
  const camera = {};
  let dirty = true, visible = true, scene = null, lineBuffer = null, numLineCorners = 0;
  const home = () => {
    const aspect = canvas.clientWidth / Math.max(canvas.clientHeight, 1);
    const extent = Math.max(about.size[1], Math.hypot(about.size[0], about.size[2]) / Math.max(aspect, 0.1));
    Object.assign(camera, { azimuth: 0.35, elevation: 0.08, distance: 0.56 * extent / Math.tan(FOV / 2), target: [...middle] });
    dirty = true;
  };
  const axes = () => {
    const [ca, sa, ce, se] = [Math.cos(camera.azimuth), Math.sin(camera.azimuth), Math.cos(camera.elevation), Math.sin(camera.elevation)];
    return { right: [ca, 0, -sa], up: [-sa * se, ce, -ca * se], back: [sa * ce, se, ca * ce] };
  };
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const viewMatrix = () => {
    const { right, up, back } = axes();
    const eye = camera.target.map((value, i) => value + camera.distance * back[i]);
    return new Float32Array([
      right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
      -dot(right, eye), -dot(up, eye), -dot(back, eye), 1,
    ]);
  };
  const projectionMatrix = (aspect) => {
    const f = 1 / Math.tan(FOV / 2);
    // As tight around the mesh as can be: depth precision is what keeps wireframe and surface apart.
    const { back } = axes();
    const gap = dot(back, camera.target.map((value, i) => value + camera.distance * back[i] - middle[i]));
    const near = Math.max(gap - radius, 0.01), far = Math.max(gap + radius, near + 0.1);
    return new Float32Array([f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0]);
  };
  const orbit = (dx, dy) => {
    camera.azimuth -= dx;
    camera.elevation = Math.min(1.5, Math.max(-1.5, camera.elevation + dy));
    dirty = true;
  };
  const zoom = (factor) => {
    camera.distance = Math.min(12, Math.max(0.15, camera.distance * factor));
    dirty = true;
  };
  const pan = (dx, dy) => {
    const { right, up } = axes();
    const scale = 2 * camera.distance * Math.tan(FOV / 2) / Math.max(canvas.clientHeight, 1);
    camera.target = camera.target.map((value, i) => value - (dx * right[i] - dy * up[i]) * scale);
    dirty = true;
  };

  const compile = (kind, source) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    return shader;
  };
  const buffer = (target, data) => {
    const handle = gl.createBuffer();
    gl.bindBuffer(target, handle);
    gl.bufferData(target, data, gl.STATIC_DRAW);
    return handle;
  };
  const attribute = (program, name, data, size, type) => {
    const place = gl.getAttribLocation(program, name);
    buffer(gl.ARRAY_BUFFER, data);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, true, data.byteLength / about.vertices, 0);
  };
  const upload = (mesh, image) => {
    const program = gl.createProgram();
    gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(program, compile(gl.FRAGMENT_SHADER, FRAGMENT));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error("The shader does not link: " + gl.getProgramInfoLog(program));
    gl.useProgram(program);
    attribute(program, "position", mesh.positions, 3, gl.UNSIGNED_SHORT);
    attribute(program, "uv", mesh.uv, 2, gl.UNSIGNED_SHORT);
    attribute(program, "normal", mesh.normals, 3, gl.BYTE);
    const triangles = buffer(gl.ELEMENT_ARRAY_BUFFER, mesh.indices);
    const limit = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    let source = image;
    if (Math.max(image.naturalWidth, image.naturalHeight) > limit) {
      source = document.createElement("canvas");
      source.width = Math.min(limit, image.naturalWidth);
      source.height = Math.min(limit, image.naturalHeight);
      source.getContext("2d").drawImage(image, 0, 0, source.width, source.height);
    }
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, source);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    // No mipmaps: coarse levels would bleed the atlas' padding over the seams.
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    gl.enable(gl.DEPTH_TEST);
    const place = {};
    for (const name of ["view", "projection", "low", "size", "lit", "textured", "line"]) place[name] = gl.getUniformLocation(program, name);
    gl.uniform3fv(place.low, about.low);
    gl.uniform3fv(place.size, about.size);
    lineBuffer = null;
    scene = { place, triangles, mesh };
  };

  const draw = () => {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const { place, triangles, mesh } = scene;
    gl.uniformMatrix4fv(place.view, false, viewMatrix());
    gl.uniformMatrix4fv(place.projection, false, projectionMatrix(width / height));
    gl.uniform1f(place.lit, options.lit ? 1 : 0);
    gl.uniform1f(place.textured, options.textured ? 1 : 0);
    gl.uniform1f(place.line, 0);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, triangles);
    gl.drawElements(gl.TRIANGLES, mesh.indices.length, gl.UNSIGNED_INT, 0);
    if (options.wire) {
      if (!lineBuffer) {
        const lines = edgesOf(mesh.indices);
        lineBuffer = buffer(gl.ELEMENT_ARRAY_BUFFER, lines);
        numLineCorners = lines.length;
      }
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, lineBuffer);
      gl.uniform1f(place.line, 1);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.drawElements(gl.LINES, numLineCorners, gl.UNSIGNED_INT, 0);
      gl.disable(gl.BLEND);
    }
  };
  let before = 0;
  const frame = (now) => {
    const seconds = Math.min((now - before) / 1000, 0.1);
    before = now;
    if (options.turning && visible) orbit(-0.5 * seconds, 0);
    if (dirty && visible && scene) {
      dirty = false;
      draw();
      figure.dataset.state = "ready";
    }
    requestAnimationFrame(frame);
  };

  const buttons = {};
  const refresh = () => {
    for (const [name, button] of Object.entries(buttons)) if (name in options) button.setAttribute("aria-pressed", String(options[name]));
    dirty = true;
  };
  figure.querySelectorAll(".viewer-bar button").forEach((button) => {
    const name = button.dataset.action;
    buttons[name] = button;
    button.addEventListener("click", () => {
      if (name === "home") home(); else options[name] = !options[name];
      refresh();
    });
  });
  const touched = () => {
    if (!options.turning) return;
    options.turning = false;
    refresh();
  };

  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    touched();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const [ox, oy] = other[1];
      const gapBefore = Math.hypot(last[0] - ox, last[1] - oy), gapNow = Math.hypot(event.clientX - ox, event.clientY - oy);
      if (gapNow > 1) zoom(gapBefore / gapNow);
      pan(dx / 2, dy / 2);
    } else if (event.buttons & 2 || event.buttons & 4 || event.shiftKey) pan(dx, dy);
    else orbit(dx * 0.008, dy * 0.008);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => { home(); });
  canvas.addEventListener("wheel", (event) => {
    // The page keeps scrolling under the mouse until the view has been clicked; pinching a touchpad always zooms.
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    touched();
    zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY * (event.deltaMode === 1 ? 20 : 1))) * 0.003));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = event.shiftKey ? (x, y) => pan(-x * 24, y * 24) : (x, y) => orbit(-x * 0.12, y * 0.12);
    const keys = {
      ArrowLeft: () => move(1, 0), ArrowRight: () => move(-1, 0), ArrowUp: () => move(0, 1), ArrowDown: () => move(0, -1),
      "+": () => zoom(0.88), "=": () => zoom(0.88), "-": () => zoom(1.14), Home: home, "0": home,
      " ": () => { options.turning = !options.turning; }, l: () => { options.lit = !options.lit; },
      t: () => { options.textured = !options.textured; }, w: () => { options.wire = !options.wire; },
    };
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    if (event.key.startsWith("Arrow")) touched();
    action();
    refresh();
  });
  if (typeof ResizeObserver !== "undefined") new ResizeObserver(() => { dirty = true; }).observe(canvas);
  else addEventListener("resize", () => { dirty = true; });
  if (typeof IntersectionObserver !== "undefined") {
    new IntersectionObserver((entries) => { visible = entries[entries.length - 1].isIntersecting; dirty = true; }).observe(canvas);
  }

  (async () => {
    const image = document.getElementById("mesh-texture");
    const [mesh] = await Promise.all([unpack(), image.decode()]);
    upload(mesh, image);
    canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); scene = null; });
    canvas.addEventListener("webglcontextrestored", () => { upload(mesh, image); dirty = true; });
    message.hidden = true;
    home();
    refresh();
    requestAnimationFrame(frame);
  })().catch((error) => fail("The interactive view could not be started (" + error.message + ")."));
})();
