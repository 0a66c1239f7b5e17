// The computation, written once for every instruction set: `S` says what a vector is there and does with one.
//
// Method: Winograd's minimal filtering, Lavin and Gray 2015 (arXiv:1509.09308). A tile of m×m outputs takes n×n inputs,
// here 4×4 and 6×6. Tiles and filters are transformed, V = Bᵀ d B and U = G g Gᵀ (by points.py and weights.py, beforehand), and
//
//     M[x][t][k] = Σ_c V[x][t][c] · U[x][c][k]        for each of the n² frequencies x, tile t, filter k, channel c
//
// are n² matrix products; Y = Aᵀ M A is the output's tile.
//
// The same bits on every instruction set, for any number of images, threads and tiles at a time: each output is computed
// by the same operations in the same order, lane by lane. Sums run over channels from the first to the last; products are
// fused with sums where, and only where, `S::fma` says so (the compiler is told not to: -ffp-contract=off); int32 sums are
// exact, and can't overflow (see `quantised` in weights.py).
#pragma once
#include <type_traits>

#include "abi.hpp"
#include "matrices.hpp"

#define INLINE __attribute__((always_inline)) inline
// Loops over registers have to be unrolled, or GCC keeps no sum in a register and is half as fast.
#if defined(UNROLL)
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

namespace {

constexpr size_t ALIGNMENT = 64;
// Rows of equal length would fall on the same lines of a cache.
constexpr size_t PADDING = 96;
// Dense layers are long sums: those of so many products are added up.
constexpr int DENSE_PIECE = 512;
// Activations have 14 bits.
constexpr float LARGEST = 8191.0f;
// A tile whose largest number is smaller is zero: its inverse would be too large for float32.
constexpr float SMALLEST = 1e-30f;

INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
INLINE size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// Σ_j c[j] · x[j · stride] over j = start, start + step …; most coefficients are zero, and cost nothing.
template <class S, int N>
INLINE typename S::V combination(const float (&c)[N], const typename S::V* x, int stride, int start, int step) {
  typename S::V sum = S::zero();
  bool is_first = true;
  UNROLL for (int j = start; j < N; j += step) {
    if (c[j] == 0) continue;
    sum = is_first ? S::mul(S::set1(c[j]), x[j * stride]) : S::fma(S::set1(c[j]), x[j * stride], sum);
    is_first = false;
  }
  return sum;
}

// y = Bᵀ x. The rows of a pair ±p are e + o and e - o, with e of the even columns and o of the odd ones.
template <class S>
INLINE void transform_inputs(const typename S::V* x, typename S::V* y, int stride) {
  y[0] = combination<S>(BT[0], x, 1, 0, 2);
  y[(n - 1) * stride] = combination<S>(BT[n - 1], x, 1, 1, 2);
  UNROLL for (int i = 1; i < n - 1; i += 2) {
    const typename S::V even = combination<S>(BT[i], x, 1, 0, 2), odd = combination<S>(BT[i], x, 1, 1, 2);
    y[i * stride] = S::add(even, odd);
    y[(i + 1) * stride] = S::sub(even, odd);
  }
}

// y = Aᵀ x. The columns of a pair ±p are p^k and (-p)^k, so even rows take the sums of pairs, odd ones the differences.
template <class S>
INLINE void transform_outputs(const typename S::V* x, typename S::V* y, int stride) {
  constexpr int pairs = (n - 2) / 2;
  typename S::V sums[pairs], differences[pairs];
  UNROLL for (int p = 0; p < pairs; p++) {
    sums[p] = S::add(x[1 + 2 * p], x[2 + 2 * p]);
    differences[p] = S::sub(x[1 + 2 * p], x[2 + 2 * p]);
  }
  UNROLL for (int k = 0; k < m; k++) {
    const typename S::V* from = k % 2 ? differences : sums;
    typename S::V sum = S::mul(S::set1(AT[k][1]), from[0]);
    UNROLL for (int p = 1; p < pairs; p++) sum = S::fma(S::set1(AT[k][1 + 2 * p]), from[p], sum);
    if (k == 0) sum = S::add(sum, x[0]);
    if (k == m - 1) sum = S::add(sum, x[n - 1]);
    y[k * stride] = sum;
  }
}

// C[r][j] = Σ_k A[r][k] · B[k][j] for ROWS rows and a panel of columns, all sums in registers. Of int16, A and B hold pairs
// of two neighbouring k, `depth` counts pairs, and C is multiplied with the scales of its row and column.
template <class S, bool INTEGER, int ROWS>
INLINE void multiply_block(const void* a, size_t a_row, const void* b, int depth, float* c, size_t c_row,
                           const float* row_scales, const float* column_scales) {
  constexpr int L = S::LANES, VECTORS = S::VECTORS;
  const float* const left = static_cast<const float*>(a);
  const float* right = static_cast<const float*>(b);
  if constexpr (INTEGER) {
    typename S::I sums[ROWS][VECTORS];
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = S::zero_pairs();
    for (int k = 0; k < depth; k++, right += VECTORS * L) {
      typename S::I columns[VECTORS];
      UNROLL for (int v = 0; v < VECTORS; v++) columns[v] = S::load_pairs(right + v * L);
      UNROLL for (int r = 0; r < ROWS; r++) {
        const typename S::I row = S::set1_pair(left + r * a_row + k);
        UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = S::dot(sums[r][v], row, columns[v]);
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
      const typename S::V scaled = S::mul(S::from_int(sums[r][v]), S::set1(row_scales[r]));
      S::store(c + r * c_row + v * L, S::mul(scaled, S::load(column_scales + v * L)));
    }
  } else {
    typename S::V sums[ROWS][VECTORS];
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = S::zero();
    for (int k = 0; k < depth; k++, right += VECTORS * L) {
      typename S::V columns[VECTORS];
      UNROLL for (int v = 0; v < VECTORS; v++) columns[v] = S::load(right + v * L);
      UNROLL for (int r = 0; r < ROWS; r++) {
        const typename S::V row = S::set1(left[r * a_row + k]);
        UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = S::fma(row, columns[v], sums[r][v]);
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++)
      S::store(c + r * c_row + v * L, sums[r][v]);
  }
}

// The same for any number of rows.
template <class S, bool INTEGER, int ROWS = S::ROWS>
INLINE void multiply_rows(int rows, const float* a, size_t a_row, const void* b, int depth, float* c, size_t c_row,
                          const float* row_scales, const float* column_scales) {
  for (; rows >= ROWS; rows -= ROWS, a += ROWS * a_row, c += ROWS * c_row) {
    multiply_block<S, INTEGER, ROWS>(a, a_row, b, depth, c, c_row, row_scales, column_scales);
    if constexpr (INTEGER) row_scales += ROWS;
  }
  if constexpr (ROWS > 1) {
    if (rows) multiply_rows<S, INTEGER, ROWS / 2>(rows, a, a_row, b, depth, c, c_row, row_scales, column_scales);
  }
}

// The layers at float32, or at int16.
template <class S, bool INTEGER>
struct Winograd {
  using V = typename S::V;
  static constexpr int L = S::LANES, PANEL = S::VECTORS * S::LANES;
  using Input = std::conditional_t<INTEGER, int16_t, float>;

  // What lies in the workspace, one behind the other.
  struct Room {
    size_t input_stride, product_stride;  // from a frequency to the next, in numbers
    Input* inputs;                        // V: n² × tiles × channels
    float* products;                      // M: n² × tiles × filters
    float* scales;                        // of V: n² × tiles
    float* exact;                         // one tile, until it is rounded: n² × channels
    size_t bytes;

    Room(void* workspace, int channels, int filters, int tiles) {
      input_stride = static_cast<size_t>(tiles) * channels + PADDING;
      product_stride = static_cast<size_t>(tiles) * filters + PADDING;
      bytes = 0;
      auto take = [&](size_t count, size_t size) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(workspace) + bytes;
        bytes += aligned(count * size);
        return at;
      };
      inputs = reinterpret_cast<Input*>(take(n * n * input_stride, sizeof(Input)));
      products = reinterpret_cast<float*>(take(n * n * product_stride, sizeof(float)));
      scales = reinterpret_cast<float*>(take(INTEGER ? n * n * tiles : 0, sizeof(float)));
      exact = reinterpret_cast<float*>(take(INTEGER ? n * n * (channels + PADDING) : 0, sizeof(float)));
    }
  };

  static int64_t workspace(int channels, int filters, int tiles) {
    return static_cast<int64_t>(Room(nullptr, channels, filters, tiles).bytes);
  }

  // A tile's place: its image, and its first row and column of pixels.
  struct Place {
    int image, y, x;
    Place(int tile, int per_side)
        : image(tile / (per_side * per_side)), y(tile / per_side % per_side * m), x(tile % per_side * m) {}
  };

  static void run(const Conv& conv) {
    const int per_side = ceil_div(conv.side, m), total = conv.images * per_side * per_side;
    const Room room(conv.workspace, conv.channels, conv.filters, conv.tiles);
    // Groups of like size, so that the last isn't a small one.
    const int size = ceil_div(total, ceil_div(total, conv.tiles));
    for (int first = 0; first < total; first += size) {
      const int count = smaller(size, total - first);
      for (int t = 0; t < count; t++) transform_tile(conv, room, Place(first + t, per_side), t);
      multiply(conv, room, count);
      for (int t = 0; t < count; t++) write_tile(conv, room, Place(first + t, per_side), t);
    }
  }

  // V of a tile, the t-th of its group.
  static void transform_tile(const Conv& conv, const Room& room, Place place, int t) {
    const int channels = conv.channels;
    const size_t pitch = conv.in_pitch, row = pitch * channels;
    const float* const corner = conv.input + ((place.image * pitch + place.y) * pitch + place.x) * channels;
    Input* const to = room.inputs + static_cast<size_t>(t) * channels;
    if constexpr (INTEGER) {
      transform_rounded(conv, room, corner, to, t);
    } else {
      for (int c = 0; c < channels; c += L) {
        V half[n * n], whole[n];
        UNROLL for (int j = 0; j < n; j++) transform_column(corner + j * channels + c, row, half + j, n);
        UNROLL for (int i = 0; i < n; i++) {
          transform_inputs<S>(half + i * n, whole, 1);
          UNROLL for (int j = 0; j < n; j++) S::store(to + (i * n + j) * room.input_stride + c, whole[j]);
        }
      }
    }
  }

  static INLINE void transform_column(const float* from, size_t row, V* to, int stride) {
    V column[n];
    UNROLL for (int i = 0; i < n; i++) column[i] = S::load(from + i * row);
    transform_inputs<S>(column, to, stride);
  }

  // Rounded, with a scale for each frequency, so all channels of one must be known first. All columns are transformed, then
  // row by row what becomes its six frequencies, which thus stay in the first cache, and their peaks in registers.
  static void transform_rounded(const Conv& conv, const Room& room, const float* corner, int16_t* to, int t) {
    const int channels = conv.channels;
    const size_t row = static_cast<size_t>(conv.in_pitch) * channels, stride = channels + PADDING;
    for (int j = 0; j < n; j++)
      for (int c = 0; c < channels; c += L) {
        V half[n];
        transform_column(corner + j * channels + c, row, half, 1);
        UNROLL for (int i = 0; i < n; i++) S::store(room.exact + (i * n + j) * stride + c, half[i]);
      }
    for (int x = 0; x < n * n; x += n) {
      float* const line = room.exact + x * stride;
      typename S::I largest[n];
      UNROLL for (int j = 0; j < n; j++) largest[j] = S::zero_pairs();
      for (int c = 0; c < channels; c += L) {
        V half[n], whole[n];
        UNROLL for (int j = 0; j < n; j++) half[j] = S::load(line + j * stride + c);
        transform_inputs<S>(half, whole, 1);
        UNROLL for (int j = 0; j < n; j++) {
          S::store(line + j * stride + c, whole[j]);
          largest[j] = S::max_bits(largest[j], S::magnitude_bits(whole[j]));
        }
      }
      UNROLL for (int j = 0; j < n; j++) {
        // Compared as integers, in which NaN is the largest of all: it must not get lost, and shows in the scale.
        const float peak = S::largest_float(largest[j]);
        const bool is_zero = peak < SMALLEST;
        room.scales[(x + j) * conv.tiles + t] = is_zero ? 0.0f : peak / LARGEST;
        const V factor = S::set1(is_zero ? 0.0f : LARGEST / peak);
        for (int c = 0; c < channels; c += L)
          S::store_rounded(to + (x + j) * room.input_stride + c, S::mul(S::load(line + j * stride + c), factor));
      }
    }
  }

  static void multiply(const Conv& conv, const Room& room, int count) {
    const int channels = conv.channels, filters = conv.filters;
    // In units of float32's size: a pair of int16 is one.
    constexpr int SHARE = sizeof(float) / sizeof(Input);
    const int depth = channels / SHARE;
    const Input* weights = static_cast<const Input*>(conv.weights);
    for (int x = 0; x < n * n; x++) {
      const float* const left = reinterpret_cast<const float*>(room.inputs + x * room.input_stride);
      for (int k = 0; k < filters; k += PANEL, weights += static_cast<size_t>(channels) * PANEL) {
        float* const to = room.products + x * room.product_stride + k;
        const float* const row_scales = INTEGER ? room.scales + x * conv.tiles : nullptr;
        const float* const column_scales = INTEGER ? conv.scales + x * filters + k : nullptr;
        multiply_rows<S, INTEGER>(count, left, depth, weights, depth, to, filters, row_scales, column_scales);
      }
    }
  }

  static void write_tile(const Conv& conv, const Room& room, Place place, int t) {
    const int filters = conv.filters;
    const size_t pitch = conv.out_pitch;
    const int height = smaller(m, conv.side - place.y), width = smaller(m, conv.side - place.x);
    float* const image = conv.output + place.image * pitch * pitch * filters;
    const float* const from = room.products + static_cast<size_t>(t) * filters;
    auto at = [&](int y, int x) { return image + ((y + 1) * pitch + x + 1) * filters; };
    for (int k = 0; k < filters; k += L) {
      V half[m * n], whole[m * m];
      UNROLL for (int j = 0; j < n; j++) {
        V column[n];
        UNROLL for (int i = 0; i < n; i++) column[i] = S::load(from + (i * n + j) * room.product_stride + k);
        transform_outputs<S>(column, half + j, n);
      }
      UNROLL for (int i = 0; i < m; i++) transform_outputs<S>(half + i * n, whole + i * m, 1);
      const V bias = S::load(conv.bias + k);
      // `S::max` returns its second operand where either is NaN, which must not become a zero.
      auto activated = [&](V value) { return S::max(S::zero(), S::add(value, bias)); };
      if (conv.pooled) {
        UNROLL for (int i = 0; i < m; i += 2) UNROLL for (int j = 0; j < m; j += 2) {
          if (i + 1 >= height || j + 1 >= width) continue;
          const V upper = S::max(whole[i * m + j], whole[i * m + j + 1]);
          const V lower = S::max(whole[(i + 1) * m + j], whole[(i + 1) * m + j + 1]);
          // The same before the bias and ReLU as behind them, since both keep the order.
          S::store(at((place.y + i) / 2, (place.x + j) / 2) + k, activated(S::max(upper, lower)));
        }
      } else {
        UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < m; j++)
          if (i < height && j < width) S::store(at(place.y + i, place.x + j) + k, activated(whole[i * m + j]));
      }
    }
  }
};

template <class S>
void direct(const Direct& d) {
  constexpr int L = S::LANES, VECTORS = S::VECTORS, ROWS = S::ROWS;
  using V = typename S::V;
  const int row_numbers = 3 * d.channels;
  const size_t in_pitch = d.in_pitch, out_pitch = d.out_pitch;
  for (int image = 0; image < d.images; image++)
    for (int y = 0; y < d.side; y++)
      for (int next = 0; next < d.side; next += ROWS) {
        // The last pixels of a row are computed with some before them again.
        const int x = smaller(next, d.side - ROWS);
        for (int k = 0; k < d.filters; k += L * VECTORS) {
          V sums[ROWS][VECTORS];
          UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++)
            sums[r][v] = S::load(d.bias + k + v * L);
          const float* weights = d.weights + k;
          for (int window = 0; window < 3; window++) {
            // The three pixels of a window's row lie one behind the other, and so do their weights.
            const float* const from = d.input + ((image * in_pitch + y + window) * in_pitch + x) * d.channels;
            for (int i = 0; i < row_numbers; i++, weights += d.filters) {
              V columns[VECTORS];
              UNROLL for (int v = 0; v < VECTORS; v++) columns[v] = S::load(weights + v * L);
              UNROLL for (int r = 0; r < ROWS; r++) {
                const V pixel = S::set1(from[r * d.channels + i]);
                UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = S::fma(pixel, columns[v], sums[r][v]);
              }
            }
          }
          float* const to = d.output + ((image * out_pitch + y + 1) * out_pitch + x + 1) * d.filters + k;
          UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++)
            S::store(to + r * d.filters + v * L, S::max(S::zero(), sums[r][v]));
        }
      }
}

template <class S>
void dense(const Dense& d) {
  constexpr int L = S::LANES, PANEL = S::VECTORS * S::LANES;
  for (int r = 0; r < d.rows; r++)
    for (int k = 0; k < d.columns; k++) d.output[static_cast<size_t>(r) * d.columns + k] = 0;
  for (int k = 0; k < d.columns; k += PANEL)
    for (int first = 0; first < d.depth; first += DENSE_PIECE) {
      const float* const weights = d.weights + (static_cast<size_t>(k / PANEL) * d.depth + first) * PANEL;
      for (int r = 0; r < d.rows; r++) {
        float part[PANEL];
        const float* const row = d.input + static_cast<size_t>(r) * d.depth + first;
        multiply_block<S, false, 1>(row, 0, weights, smaller(DENSE_PIECE, d.depth - first), part, 0, nullptr, nullptr);
        float* const to = d.output + static_cast<size_t>(r) * d.columns + k;
        UNROLL for (int v = 0; v < PANEL; v += L) S::store(to + v, S::add(S::load(to + v), S::load(part + v)));
      }
    }
}

template <class S>
constexpr Kernel make_kernel() {
  using Float = Winograd<S, false>;
  using Int16 = Winograd<S, true>;
  return {
      S::VECTORS * S::LANES, {Float::workspace, Int16::workspace}, {Float::run, Int16::run}, direct<S>, dense<S>};
}

}  // namespace
