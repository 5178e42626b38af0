"""3 x 3 convolutions by Winograd's minimal filtering F(4 x 4, 3 x 3), for a CPU.

Four times fewer multiplications than the sum over nine shifts: maps are cut into tiles of 4 x 4
outputs, each made from 6 x 6 inputs as Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A (Lavin and Gray, "Fast Algorithms
for Convolutional Neural Networks", 2016, section 4). Every part is a matrix product of arrays as
they lie, because maps are [h, w, B, C]: rows and columns first. `benchmarks/NOTES.md` has the
measurements. Rounding in float32 is about ten times that of the sum.
"""

import jax
import jax.numpy as jnp
import numpy as np

TILE = 4  # outputs along a side of a tile
_READ = TILE + 2  # inputs

# Bᵀ, G and Aᵀ of F(4, 3), with the interpolation points 0, 1, -1, 2, -2 and infinity.
_OF_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_OF_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
_OF_OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    np.float32,
)


def applies(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `convolve` can be used, and is faster: 3 x 3, float32, whole tiles, wide maps."""
    return (
        kernel.shape[:2] == (3, 3)
        and x.dtype == jnp.float32
        and all(side % TILE == 0 for side in x.shape[:2])
        and min(kernel.shape[2:]) >= 8
    )


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Maps [h, w, B, in] and a kernel [3, 3, in, out] -> [h, w, B, out], padded with zeros.

    Args:
        x: float32; h and w multiples of `TILE`.
        kernel: float32.
    """
    height, width = x.shape[:2]
    x = jax.lax.optimization_barrier(x)  # computed within a product's loop, x would take longer
    made = _multiply(_tiles(x), _transformed(kernel))
    return _along_sides(_output_matrix(height), _output_matrix(width), made)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The transposes of all products. Those that JAX derives would move axes in memory."""
    x, kernel = operands
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    height, width = x.shape[:2]
    of_made = _along_sides(_output_matrix(height).T, _output_matrix(width).T, gradient)
    of_tiles = _multiply(of_made, _transformed(kernel.swapaxes(2, 3)))
    of_x = _along_sides(_input_matrix(height).T, _input_matrix(width).T, of_tiles)
    # The tiles are made again: kept, they would take 2.25 times the memory of x.
    products = jax.lax.dot_general(
        _by_position(_tiles(x)), _by_position(of_made), (((1, 2), (1, 2)), ((0,), (0,)))
    )
    of_transformed = products.reshape(_READ, -1, _READ, *kernel.shape[2:]).sum(axis=1)
    of_kernel = jnp.einsum("ia,jb,ijck->abck", _OF_KERNEL, _OF_KERNEL, of_transformed)
    return of_x, of_kernel


convolve.defvjp(_forward, _backward)


def _tiles(x: jax.Array) -> jax.Array:
    """Bᵀ d B of all tiles: maps [h, w, B, C] -> [6 h/4, 6 w/4, B, C].

    Along both sides, first by the position in a tile, then by tile.
    """
    return _along_sides(_input_matrix(x.shape[0]), _input_matrix(x.shape[1]), x)


def _transformed(kernel: jax.Array) -> jax.Array:
    """G g Gᵀ: [3, 3, in, out] -> [6, 6, in, out]."""
    return jnp.einsum("ia,jb,abck->ijck", _OF_KERNEL, _OF_KERNEL, kernel)


def _multiply(tiles: jax.Array, kernel: jax.Array) -> jax.Array:
    """[6 h/4, 6 w/4, B, in] by the kernel [6, 6, in, out] of its position -> [.., .., B, out]."""
    rows, channels = len(tiles) // _READ, kernel.shape[2:]
    of_rows = jnp.broadcast_to(kernel[:, None], (_READ, rows, _READ, *channels))
    made = jax.lax.dot_general(
        _by_position(tiles), of_rows.reshape(-1, *channels), (((3,), (1,)), ((0,), (0,)))
    )
    return made.reshape(*tiles.shape[:3], channels[1])


def _by_position(tiles: jax.Array) -> jax.Array:
    """[6 h/4, 6 w/4, B, C] -> [36 h/4, w/4, B, C]: an axis for each kernel, one for tiles."""
    height, width, *rest = tiles.shape
    return tiles.reshape(height * _READ, width // _READ, *rest)


def _along_sides(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """rows [i, h], columns [j, w] and [h, w, B, C] -> [i, j, B, C]."""
    if max(len(rows), len(columns)) <= _READ:  # a single tile: one product is faster than two
        both = jax.lax.dot_general(
            np.kron(rows, columns), x.reshape(-1, *x.shape[2:]), (((1,), (0,)), ((), ()))
        )
        return both.reshape(len(rows), len(columns), *x.shape[2:])
    half = jax.lax.dot_general(rows, x, (((1,), (0,)), ((), ())))
    of_rows = jnp.broadcast_to(columns, (len(rows), *columns.shape))
    return jax.lax.dot_general(of_rows, half, (((2,), (1,)), ((0,), (0,))))


def _input_matrix(side: int) -> np.ndarray:
    """Bᵀ of every tile along a side padded by one zero at both ends: [6 tiles, side]."""
    tiles = side // TILE
    matrix = np.zeros((_READ, tiles, side + 2), np.float32)
    for tile in range(tiles):
        matrix[:, tile, TILE * tile : TILE * tile + _READ] = _OF_INPUT
    return matrix.reshape(_READ * tiles, side + 2)[:, 1:-1]


def _output_matrix(side: int) -> np.ndarray:
    """Aᵀ of every tile along a side: [side, 6 tiles]."""
    tiles = side // TILE
    return np.einsum("or,st->tors", _OF_OUTPUT, np.eye(tiles, dtype=np.float32)).reshape(side, -1)
