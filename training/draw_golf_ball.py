"""Draws the sample `golf_ball`: a ball on a lawn, by one ray for each of four parts of a pixel.

The embedded network knows golf balls, and none of scikit-image's photographs shows one of its
classes. Nothing in the picture is taken from elsewhere.

    python training/draw_golf_ball.py src/sightline/assets/golf_ball.jpg
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Array = NDArray[np.float64]

SIDE = 512
RAYS_PER_SIDE = 2  # of a pixel
RAY_COUNT = SIDE * RAYS_PER_SIDE

# In radii of the ball; y points up, and the lawn is y = 0.
CAMERA = np.array([0.0, 1.15, -4.2])
CAMERA_AIM = np.array([0.05, 0.78, 0.0])
FOCAL_LENGTH = 2.1
BALL_CENTER = np.array([0.1, 0.95, 0.0])
SUN = np.array([-0.55, 0.8, -0.45]) / np.linalg.norm([-0.55, 0.8, -0.45])

DIMPLE_COUNT = 336
DIMPLE_RADIUS = 0.098
BLADE_COUNT = 2100
FAR = 60.0  # the sky's distance


def main(path: Path) -> None:
    """Draws the picture and writes it."""
    generator = np.random.default_rng(0)
    columns, rays = aim_rays()
    picture, distance = draw_scenery(columns, rays, draw_turf(generator))
    picture = blur_by_distance(picture, distance)
    ball, is_ball = draw_ball(rays)
    picture = np.where(is_ball[..., None], ball, picture)
    foot = int(np.flatnonzero(is_ball.any(1)).max())
    draw_blades(picture, foot)

    shape = (SIDE, RAYS_PER_SIDE, SIDE, RAYS_PER_SIDE, 3)
    pixels = picture.clip(0, 1).reshape(shape).mean((1, 3))
    pixels += generator.normal(0, 0.008, pixels.shape)
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(levels).save(path, quality=88)


def aim_rays() -> tuple[Array, Array]:
    """The column of each ray, from -1 to 1, and its direction."""
    forward = CAMERA_AIM - CAMERA
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right)
    row_numbers, column_numbers = np.mgrid[0:RAY_COUNT, 0:RAY_COUNT]
    columns = (column_numbers + 0.5) / RAY_COUNT * 2 - 1
    rows = 1 - (row_numbers + 0.5) / RAY_COUNT * 2
    rays = columns[..., None] * right + rows[..., None] * up + FOCAL_LENGTH * forward
    return columns, rays / np.linalg.norm(rays, axis=-1, keepdims=True)


# ── lawn and sky ──


def draw_turf(generator: np.random.Generator) -> Array:
    """Noise of three sizes that repeats at its edges: mean 0, deviation 1."""
    turf = np.zeros((512, 512))
    for size in (1.2, 3, 7):
        noise = generator.standard_normal(turf.shape)
        turf += size * gaussian_filter(noise, (1.6 * size, 0.7 * size), mode="wrap")
    return (turf - turf.mean()) / turf.std()


def read_turf(turf: Array, x: Array, z: Array, scale: float) -> Array:
    """The noise at points of the lawn."""
    height, width = turf.shape
    return turf[(z * scale).astype(int) % height, (x * scale).astype(int) % width]


def draw_scenery(columns: Array, rays: Array, turf: Array) -> tuple[Array, Array]:
    """Lawn, trees and sky, and how far away each is."""
    falling = np.minimum(rays[..., 1], -1e-3)
    is_lawn = (rays[..., 1] < -1e-3) & (-CAMERA[1] / falling < FAR)
    reach = np.where(is_lawn, -CAMERA[1] / falling, 0)
    x = CAMERA[0] + reach * rays[..., 0]
    z = CAMERA[2] + reach * rays[..., 2]

    grain = 0.6 * read_turf(turf, x + 50, z + 50, 95) + 0.5 * read_turf(turf, x + 31, z + 77, 41)
    light = (0.55 + 0.16 * grain).clip(0.05, 1.1)
    green = np.stack([0.34 * light + 0.015 * grain, 0.52 * light + 0.02, 0.16 * light], -1)
    lawn = green * measure_daylight(x, z)[..., None]
    haze = 0.55 * ((z + 1) / 14).clip(0, 1)[..., None]
    lawn = lawn * (1 - haze) + np.array([0.25, 0.36, 0.13]) * haze

    height = ((rays[..., 1] + 0.02) / 0.32).clip(0, 1)[..., None]
    sky = (1 - height) * np.array([0.80, 0.87, 0.92]) + height * np.array([0.42, 0.62, 0.86])
    waves = 0.018 * np.sin(7 * columns + 1) + 0.012 * np.sin(17 * columns)
    treetops = 0.055 + waves + 0.008 * np.sin(41 * columns + 2)
    is_tree = 1 / (1 + np.exp(((rays[..., 1] - treetops) / 0.006).clip(-50, 50)))[..., None]
    background = sky * (1 - is_tree) + np.array([0.13, 0.24, 0.10]) * is_tree
    picture = np.where(is_lawn[..., None], lawn, background)
    return picture, np.where(is_lawn, z, FAR)


def measure_daylight(x: Array, z: Array) -> Array:
    """How much light reaches points of the lawn: less in the ball's shadow and under it."""
    to_ball = BALL_CENTER - np.stack([x, np.zeros_like(x), z], -1)
    along_sun = to_ball @ SUN
    from_axis = np.sqrt(np.maximum((to_ball**2).sum(-1) - along_sun**2, 0))
    unshaded = np.where(along_sun > 0, ((from_axis - 0.8) / 0.45).clip(0, 1), 1)
    from_foot = np.hypot(x - BALL_CENTER[0], z - BALL_CENTER[2]).clip(0, 1)
    return (0.38 + 0.62 * unshaded) * (0.35 + 0.65 * from_foot)


def blur_by_distance(picture: Array, distance: Array) -> Array:
    """The picture as a lens shows it that is focused on the ball."""
    slightly = ((np.abs(distance - 0.3) - 0.8) / 2.5).clip(0, 1)[..., None]
    strongly = ((distance - 3) / 8).clip(0, 1)[..., None]
    near_blur = blur_channels(picture, 4 * RAYS_PER_SIDE)
    far_blur = blur_channels(picture, 9 * RAYS_PER_SIDE)
    picture = picture * (1 - slightly) + near_blur * slightly
    return picture * (1 - strongly) + far_blur * strongly


def blur_channels(picture: Array, sigma: float) -> Array:
    """Each colour blurred by itself."""
    return np.stack([gaussian_filter(picture[..., i], sigma) for i in range(3)], -1)


# ── the ball ──


def draw_ball(rays: Array) -> tuple[Array, NDArray[np.bool_]]:
    """The ball's colours, and where it is."""
    offset = CAMERA - BALL_CENTER
    middle = rays @ offset
    discriminant = middle**2 - (offset @ offset - 1)
    is_ball = discriminant > 0
    reach = -middle - np.sqrt(np.maximum(discriminant, 0))
    normal = dent_surface(CAMERA + reach[..., None] * rays - BALL_CENTER, is_ball)

    sunlight = (normal @ SUN).clip(0, 1)
    skylight = 0.36 + 0.2 * normal[..., 1]
    from_lawn = (-normal[..., 1]).clip(0, 1)[..., None] * np.array([0.16, 0.24, 0.08])
    halfway = SUN - rays
    halfway /= np.linalg.norm(halfway, axis=-1, keepdims=True)
    gloss = 0.22 * (normal * halfway).sum(-1).clip(0, 1) ** 60
    white = np.array([0.97, 0.97, 0.95])
    color = white * (0.56 * sunlight + skylight)[..., None] + from_lawn + gloss[..., None]
    return color, is_ball


def dent_surface(normal: Array, is_ball: NDArray[np.bool_]) -> Array:
    """The normals of a sphere, tilted inside its dimples."""
    centers = place_dimples()
    distance, index = cKDTree(centers).query(normal[is_ball])
    inside = (np.asarray(distance) / DIMPLE_RADIUS).clip(0, 1)
    slope = np.where(inside < 1, 0.55 * np.sin(np.pi * inside), 0)[:, None]
    point = normal[is_ball]
    center = centers[index]
    inward = center - point * (center * point).sum(-1, keepdims=True)
    inward /= np.linalg.norm(inward, axis=-1, keepdims=True) + 1e-9
    tilted = point + slope * inward
    dented = normal.copy()
    dented[is_ball] = tilted / np.linalg.norm(tilted, axis=-1, keepdims=True)
    return dented


def place_dimples() -> Array:
    """Points spread evenly over a sphere, on a spiral whose turns are a golden angle apart."""
    numbers = np.arange(DIMPLE_COUNT) + 0.5
    polar = np.arccos(1 - 2 * numbers / DIMPLE_COUNT)
    azimuth = np.pi * (1 + 5**0.5) * numbers
    x = np.cos(azimuth) * np.sin(polar)
    z = np.sin(azimuth) * np.sin(polar)
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
    return np.stack([x, np.cos(polar), z], -1) @ turn.T


# ── grass before the ball ──


def draw_blades(picture: Array, foot: int) -> None:
    """Blades of grass from the ball's foot, a row of rays, down to the lower edge."""
    generator = np.random.default_rng(3)
    depths = np.sort(-0.035 + 0.37 * generator.uniform(0, 1, BLADE_COUNT) ** 1.2)
    for depth in depths:
        nearness = max(depth / 0.2, 0)
        left = generator.uniform(0, 1) * RAY_COUNT
        length = (0.035 + 0.05 * nearness) * RAY_COUNT * generator.uniform(0.6, 1.3)
        lean = generator.normal(0, 0.35)
        width = (1.1 + 2.2 * nearness) * RAYS_PER_SIDE
        color = np.array([0.36, 0.55, 0.17]) * generator.uniform(0.45, 1.15)
        color = color * (1 + generator.normal(0, 0.05, 3))
        for share in np.linspace(0, 1, int(length)):
            row = int(foot + depth * RAY_COUNT - share * length)
            middle = left + lean * length * share**2
            reach = width * (1 - share) + 0.4
            first = max(0, int(middle - reach))
            last = min(RAY_COUNT, int(middle + reach + 1))
            if 0 <= row < RAY_COUNT and last > first:
                picture[row, first:last] = color * (0.75 + 0.35 * share)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
