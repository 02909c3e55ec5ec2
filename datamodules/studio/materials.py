"""What a point of a person's surface is: its asset and its albedo, as compiled functions of canonical coordinates.

Canonical coordinates are positions on the neutral body of stature 1.70 m in A-pose (x left, y up, z front), the same
for every person, so one rule cuts a sleeve or a hairline on all of them. `arm` runs along the arm (0 shoulder, 0.5
elbow, 1 wrist) and is negative elsewhere; `head` is the head's skin weight. A person wears layers, outermost first; a
layer's signed distance is positive where it covers the body, and the first layer that covers a point gives its asset
and colour. The same functions displace vertices, paint renders and bake the ground-truth texture, so these cannot
disagree. All compiled code that paints is in this file: numba's cache notices changes of a function's own file only.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from datamodules.studio.vocabulary import NO_PERSON

# Columns of a layer row.
LABEL, KIND, LOW_M, HIGH_M, SLEEVE, OPENING_M, ARMHOLE_M, NECK_M, NECK_FRONT_M = 0, 1, 2, 3, 4, 5, 6, 7, 8
PATTERN, FREQUENCY, DETAIL, THICKNESS_M, SMOOTHING = 9, 10, 11, 12, 13
NUM_COLUMNS = 14
SUPERSAMPLING = 2  # samples per pixel and axis
# Kinds of layers.
TOP, BOTTOM, SHOES, HAIR, CAP = 0, 1, 2, 3, 4
# Details painted on a layer.
NO_DETAIL, BUTTONS, RIBBED, CURLS, COVERS_EARS = 0, 1, 2, 3, 4
FACE_LABEL, SKIN_LABEL = 1, 0

EYE_X_M, EYE_Y_M, MOUTH_Y_M = 0.0305, 1.5905, 1.5265
NECK_Y_M = 1.455
SHOULDER_X_M, SHOULDER_Y_M = 0.172, 1.362
ARM_LENGTH_M = 0.50


@numba.njit(cache=True)
def _smoothstep(value, low, high):  # pragma: no cover - compiled
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@numba.njit(cache=True)
def layer_distance(layer, x, y, z, arm, head):  # pragma: no cover - compiled
    """Signed distance in metres, roughly, to the border of one layer on the body; positive inside."""
    kind = int(layer[KIND])
    side = abs(x)
    if kind == TOP:
        if arm >= 0:
            return (layer[SLEEVE] - arm) * ARM_LENGTH_M
        if head > 0.5:
            return -1.0
        neck = math.sqrt(x * x + (y - NECK_Y_M) ** 2 + (z - layer[NECK_FRONT_M]) ** 2) - layer[NECK_M]
        # Collars stand on a plane that is lower at the throat than at the nape.
        distance = min(y - layer[LOW_M], min(neck, 1.468 - 0.6 * max(z + 0.02, 0.0) - y))
        if layer[ARMHOLE_M] > 0:
            hole = math.sqrt((side - SHOULDER_X_M) ** 2 + (y - SHOULDER_Y_M) ** 2 + 0.3 * z * z) - layer[ARMHOLE_M]
            distance = min(distance, hole)
        if layer[OPENING_M] > 0 and z > 0.02:
            distance = min(distance, side - layer[OPENING_M])
        return distance
    if kind == BOTTOM:
        return min(y - layer[LOW_M], layer[HIGH_M] - y) if arm < 0 else -1.0
    if kind == SHOES:
        return layer[HIGH_M] - 0.25 * max(z - 0.03, 0.0) - y if arm < 0 else -1.0
    if head < 0.3:
        return -1.0
    if kind == HAIR:
        # The hairline climbs from the nape over the ears to the forehead.
        line = 1.502 + 0.10 * _smoothstep(z, -0.03, 0.03) + 0.058 * _smoothstep(z, 0.055, 0.10)
        if layer[DETAIL] == COVERS_EARS:
            line = 1.502 + 0.158 * _smoothstep(z, 0.04, 0.09)
            return y - line
        distance = y - line
        if side > 0.0705 and z > -0.03:
            distance = min(distance, y - 1.628)
        return distance
    # Cap: tilted back a little.
    return y - (1.632 + 0.18 * (z - 0.05))


@numba.njit(cache=True)
def _pattern(pattern, u, v, frequency, chest, x, y):  # pragma: no cover - compiled
    """Whether the second colour shows. u, v: metres around and along the garment."""
    if pattern == 1:
        return math.floor(v * frequency / 0.040) % 2 == 0
    if pattern == 2:
        return (math.floor(v * frequency / 0.050) + math.floor(u * frequency / 0.050)) % 2 == 0
    if pattern == 3:
        a = u * frequency / 0.058
        b = v * frequency / 0.058
        a -= math.floor(a) + 0.5
        b -= math.floor(b) + 0.5
        return a * a + b * b < 0.085
    if pattern == 4:
        return chest and x * x + (y - 1.26) ** 2 < 0.0046
    return False


@numba.njit(cache=True)
def _paint_skin(x, y, z, skin, brow, head):  # pragma: no cover - compiled
    r, g, b = skin[0], skin[1], skin[2]
    if head < 0.5 or z < 0.04:
        return r, g, b
    side = abs(x)
    # Cheeks and lips blush; eyes, brows and nostrils.
    blush = 0.10 * math.exp(-((side - 0.042) ** 2 + (y - 1.556) ** 2) / 0.0006)
    g -= g * blush
    b -= b * blush
    if z < 0.07:
        return r, g, b
    eye = ((side - EYE_X_M) / 0.0155) ** 2 + ((y - EYE_Y_M) / 0.0078) ** 2
    if eye < 1.0:
        iris = (side - EYE_X_M) ** 2 + (y - EYE_Y_M) ** 2
        if iris < 0.0000105:
            return 0.05, 0.05, 0.06
        if iris < 0.000046:
            return 0.28, 0.20, 0.14
        return 0.93, 0.93, 0.92
    if eye < 1.45:
        return r * 0.45, g * 0.42, b * 0.42
    arch = 1.6125 + 0.005 * (1 - ((side - 0.034) / 0.02) ** 2)
    if 0.012 < side < 0.053 and abs(y - arch) < 0.0042:
        return brow[0], brow[1], brow[2]
    lips = (x / 0.026) ** 2 + ((y - MOUTH_Y_M) / 0.0095) ** 2
    if lips < 1.0:
        if abs(y - MOUTH_Y_M) < 0.0017:
            return r * 0.40, g * 0.20, b * 0.20
        return min(r * 0.80 + 0.10, 1.0), g * 0.52, b * 0.54
    if (side - 0.0085) ** 2 + (y - 1.5535) ** 2 < 0.0000135:
        return r * 0.5, g * 0.42, b * 0.42
    return r, g, b


@numba.njit(cache=True)
def _paint_layer(layer, colors, x, y, z, arm, distance, fixed):  # pragma: no cover - compiled
    kind = int(layer[KIND])
    first = colors[0]
    second = colors[1]
    r, g, b = first[0], first[1], first[2]
    if kind == HAIR:
        # Strands: light and dark bands that run from the crown downwards.
        around = math.atan2(x, -(z - 0.03))
        if layer[DETAIL] == CURLS:
            shade = 1 + 0.22 * math.sin(230 * x + 2) * math.sin(230 * y) * math.sin(230 * z + 1)
        else:
            shade = 1 + 0.10 * math.sin(31 * around) + 0.07 * math.sin(73 * around + 9 * y)
        return min(r * shade, 1.0), min(g * shade, 1.0), min(b * shade, 1.0)
    if arm >= 0:
        u, v, chest = y + 0.02, arm * ARM_LENGTH_M, False
    elif kind == BOTTOM and fixed == 0 and y < 0.80:
        u, v, chest = math.atan2(abs(x) - 0.13, z - 0.02) * 0.085, y, False
    else:
        u, v, chest = math.atan2(x, z) * 0.15, y, z > 0.02 and kind == TOP
    shade = 1.0
    if _pattern(int(layer[PATTERN]), u, v, layer[FREQUENCY], chest, x, y):
        r, g, b = second[0], second[1], second[2]
    detail = int(layer[DETAIL])
    if detail == BUTTONS and kind == TOP and arm < 0 and z > 0.02 and abs(x) < 0.014:
        along = y / 0.075
        along -= math.floor(along) + 0.5
        shade = 0.45 if x * x + (along * 0.075) ** 2 < 0.00005 else 0.86
    if detail == RIBBED and distance < 0.03:
        shade = 0.82
    elif fixed == 0 and distance < 0.010:
        shade *= 0.88
    if kind == SHOES and y < 0.012:
        return 0.90, 0.90, 0.88
    return r * shade, g * shade, b * shade


@numba.njit(cache=True)
def surface_point(owner, x, y, z, arm, head, layers, colors, skin, brow):  # pragma: no cover - compiled
    """Asset label and albedo at a canonical point.

    owner: index of the layer a face belongs to, or -1 for the body, whose layers are searched; -2 is a pair of glasses.
    layers: (L, NUM_COLUMNS), outermost first. colors: (L, 2, 3) in [0, 1]. skin, brow: (3,). Returns label, r, g, b.
    """
    if owner == -2:
        return FACE_LABEL, 0.07, 0.07, 0.08
    if owner >= 0:
        r, g, b = _paint_layer(layers[owner], colors[owner], x, y, z, arm, 1.0, 1)
        return int(layers[owner, LABEL]), r, g, b
    for index in range(layers.shape[0]):
        distance = layer_distance(layers[index], x, y, z, arm, head)
        if distance > 0:
            r, g, b = _paint_layer(layers[index], colors[index], x, y, z, arm, distance, 0)
            return int(layers[index, LABEL]), r, g, b
    r, g, b = _paint_skin(x, y, z, skin, brow, head)
    return (FACE_LABEL if head > 0.5 else SKIN_LABEL), r, g, b


@numba.njit(cache=True)
def layer_offsets(canonical, arm, head, layers):  # pragma: no cover - compiled
    """Per body vertex: how far the outermost cloth stands off (metres) and how much it is smoothed (0 to 1)."""
    num_vertices = canonical.shape[0]
    offset = np.zeros(num_vertices, np.float32)
    smoothing = np.zeros(num_vertices, np.float32)
    for vertex in range(num_vertices):
        x, y, z = canonical[vertex, 0], canonical[vertex, 1], canonical[vertex, 2]
        for index in range(layers.shape[0]):
            distance = layer_distance(layers[index], x, y, z, arm[vertex], head[vertex])
            if distance <= -0.004:
                continue
            rise = 0.015 if layers[index, KIND] != HAIR else 0.03
            height = layers[index, THICKNESS_M] * (0.25 + 0.75 * _smoothstep(distance, -0.004, rise))
            if layers[index, DETAIL] == CURLS:
                height *= 1 + 0.25 * math.sin(130 * x) * math.sin(130 * y + 1) * math.sin(130 * z)
            offset[vertex] = max(offset[vertex], height)
            smoothing[vertex] = max(smoothing[vertex], layers[index, SMOOTHING])
    return offset, smoothing


@numba.njit(cache=True)
def corner_arm(a, b, c, w0, w1, w2):  # pragma: no cover - compiled
    """The arm coordinate inside a triangle; a triangle that touches the torso belongs to the torso."""
    if a < 0 or b < 0 or c < 0:
        return -1.0
    return a * w0 + b * w1 + c * w2


@numba.njit(cache=True)
def label_vertices(canonical, arm, head, owner, layers, colors, skin, brow):  # pragma: no cover - compiled
    """Asset label (V,) uint8 of every vertex."""
    labels = np.zeros(canonical.shape[0], np.uint8)
    for vertex in range(canonical.shape[0]):
        x, y, z = canonical[vertex, 0], canonical[vertex, 1], canonical[vertex, 2]
        label, _, _, _ = surface_point(owner[vertex], x, y, z, arm[vertex], head[vertex], layers, colors, skin, brow)
        labels[vertex] = label
    return labels


@numba.njit(cache=True, fastmath=True, nogil=True)
def shade_fragments(
    face_index, barycentric, faces, owner, canonical, arm, head, normals, layers, colors, skin, brow,
    rotation, light, ambient, background, rgb, normal_map, label_map,
):  # fmt: skip  # pragma: no cover - compiled
    """Shade every sample of a rasterised image and average them into rgb, normal_map, label_map; see take_picture."""
    size = face_index.shape[0]
    rgb[:] = 0
    normal_map[:] = 0
    share = 1.0 / (SUPERSAMPLING * SUPERSAMPLING)
    for row in range(size):
        i = row // SUPERSAMPLING
        for column in range(size):
            j = column // SUPERSAMPLING
            takes_label = row % SUPERSAMPLING == 1 and column % SUPERSAMPLING == 1
            face = face_index[row, column]
            if face < 0:
                for k in range(3):
                    rgb[i, j, k] += background[i, j, k] * share
                    normal_map[i, j, k] += 0.5 * share
                if takes_label:
                    label_map[i, j] = NO_PERSON
                continue
            a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
            w0, w1 = barycentric[row, column, 0], barycentric[row, column, 1]
            w2 = 1.0 - w0 - w1
            x = canonical[a, 0] * w0 + canonical[b, 0] * w1 + canonical[c, 0] * w2
            y = canonical[a, 1] * w0 + canonical[b, 1] * w1 + canonical[c, 1] * w2
            z = canonical[a, 2] * w0 + canonical[b, 2] * w1 + canonical[c, 2] * w2
            along = corner_arm(arm[a], arm[b], arm[c], w0, w1, w2)
            top = head[a] * w0 + head[b] * w1 + head[c] * w2
            label, red, green, blue = surface_point(owner[face], x, y, z, along, top, layers, colors, skin, brow)
            nx = normals[a, 0] * w0 + normals[b, 0] * w1 + normals[c, 0] * w2
            ny = normals[a, 1] * w0 + normals[b, 1] * w1 + normals[c, 1] * w2
            nz = normals[a, 2] * w0 + normals[b, 2] * w1 + normals[c, 2] * w2
            vx = rotation[0, 0] * nx + rotation[0, 1] * ny + rotation[0, 2] * nz
            vy = rotation[1, 0] * nx + rotation[1, 1] * ny + rotation[1, 2] * nz
            vz = rotation[2, 0] * nx + rotation[2, 1] * ny + rotation[2, 2] * nz
            inverse = 1.0 / (math.sqrt(vx * vx + vy * vy + vz * vz) + 1e-9)
            # Open cloth is seen from both sides.
            if vz < 0 and owner[face] >= 0:
                inverse = -inverse
            vx, vy, vz = vx * inverse, vy * inverse, vz * inverse
            lit = ambient + (1 - ambient) * max(0.0, vx * light[0] + vy * light[1] + vz * light[2])
            rgb[i, j, 0] += min(red * lit, 1.0) * share
            rgb[i, j, 1] += min(green * lit, 1.0) * share
            rgb[i, j, 2] += min(blue * lit, 1.0) * share
            normal_map[i, j, 0] += (vx * 0.5 + 0.5) * share
            normal_map[i, j, 1] += (vy * 0.5 + 0.5) * share
            normal_map[i, j, 2] += (vz * 0.5 + 0.5) * share
            if takes_label:
                label_map[i, j] = label


@numba.njit(cache=True, nogil=True)
def bake_texels(
    uv, uv_faces, faces, owner, canonical, arm, head, layers, colors, skin, brow, albedo, labels, known
):  # pragma: no cover - compiled
    """Paint the texels whose centres lie in a triangle's chart into albedo, labels and known; see bake_textures."""
    size = albedo.shape[0]
    for face in range(faces.shape[0]):
        x0, y0 = uv[uv_faces[face, 0], 0] * size, uv[uv_faces[face, 0], 1] * size
        x1, y1 = uv[uv_faces[face, 1], 0] * size, uv[uv_faces[face, 1], 1] * size
        x2, y2 = uv[uv_faces[face, 2], 0] * size, uv[uv_faces[face, 2], 1] * size
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        left, right = min(x0, min(x1, x2)), max(x0, max(x1, x2))
        top_edge, bottom = min(y0, min(y1, y2)), max(y0, max(y1, y2))
        for row in range(max(0, math.floor(top_edge - 0.5)), min(size, math.ceil(bottom + 0.5))):
            for column in range(max(0, math.floor(left - 0.5)), min(size, math.ceil(right + 0.5))):
                px, py = column + 0.5, row + 0.5
                w0 = ((x1 - px) * (y2 - py) - (x2 - px) * (y1 - py)) / area
                w1 = ((x2 - px) * (y0 - py) - (x0 - px) * (y2 - py)) / area
                w2 = 1.0 - w0 - w1
                if w0 < -1e-6 or w1 < -1e-6 or w2 < -1e-6:
                    continue
                x = canonical[a, 0] * w0 + canonical[b, 0] * w1 + canonical[c, 0] * w2
                y = canonical[a, 1] * w0 + canonical[b, 1] * w1 + canonical[c, 1] * w2
                z = canonical[a, 2] * w0 + canonical[b, 2] * w1 + canonical[c, 2] * w2
                along = corner_arm(arm[a], arm[b], arm[c], w0, w1, w2)
                top = head[a] * w0 + head[b] * w1 + head[c] * w2
                label, red, green, blue = surface_point(owner[face], x, y, z, along, top, layers, colors, skin, brow)
                albedo[row, column, 0], albedo[row, column, 1], albedo[row, column, 2] = red, green, blue
                labels[row, column] = label
                known[row, column] = True
