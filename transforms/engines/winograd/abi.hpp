// What the library takes from Python: plain structures, as `kernel.py` declares them again.
#pragma once
#include <cstddef>
#include <cstdint>

// Activations are float32, images × pitch × pitch × channels, with a border of at least one pixel of zeros on each side;
// an image's own pixels begin at (1, 1).

// A 3×3 convolution by Winograd's minimal filtering, its bias and ReLU, and perhaps the 2×2 pooling behind it.
struct Conv {
  int32_t images;         // how many of `input` and `output`
  int32_t side;           // of an image, in pixels
  int32_t channels;       // of the input; a multiple of 64
  int32_t filters;        // channels of the output; a multiple of 64
  int32_t pooled;         // whether the output is pooled to side / 2
  int32_t in_pitch;       // at least 4 · ⌈side / 4⌉ + 2, with zeros beyond the image: tiles reach there
  int32_t out_pitch;      // at least the output's side + 2
  int32_t tiles;          // how many are transformed, multiplied and transformed back at a time
  const float* input;
  const void* weights;    // 36 × filters / panel × channels × panel; see `pack` in weights.py
  const float* scales;    // int16: 36 × filters, what to multiply the products with; else null
  const float* bias;      // filters
  float* output;
  void* workspace;        // aligned to 64 bytes
  int64_t workspace_bytes;
};

// A 3×3 convolution of few channels, its bias and ReLU, as it is written.
struct Direct {
  int32_t images, side, channels, filters, in_pitch, out_pitch;
  const float* input;
  const float* weights;   // 3 × 3 × channels × filters
  const float* bias;
  float* output;
};

// Rows times a matrix.
struct Dense {
  int32_t rows, depth, columns;  // columns: a multiple of the panel's
  const float* input;            // rows × depth
  const float* weights;          // columns / panel × depth × panel
  float* output;                 // rows × columns
};

enum Precision { FLOAT32 = 0, INT16 = 1, PRECISIONS = 2 };

// What one instruction set offers.
struct Kernel {
  int panel;  // columns of the matrix that are multiplied at a time; weights are stored in this order
  int64_t (*workspace[PRECISIONS])(int channels, int filters, int tiles);
  void (*conv[PRECISIONS])(const Conv&);
  void (*direct)(const Direct&);
  void (*dense)(const Dense&);
};
