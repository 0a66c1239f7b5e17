// AVX-512: sixteen numbers a vector, 32 vectors. And the same with VNNI.
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#include "kernel.hpp"

namespace {

struct Avx512 {
  // 6 × 4 sums, a row of four vectors and one number of the other matrix fill 29 of the 32 registers.
  static constexpr int LANES = 16, VECTORS = 4, ROWS = 6;
  using V = __m512;
  using I = __m512i;
  static INLINE V zero() { return _mm512_setzero_ps(); }
  static INLINE V set1(float a) { return _mm512_set1_ps(a); }
  static INLINE V load(const float* from) { return _mm512_loadu_ps(from); }
  static INLINE void store(float* to, V a) { _mm512_storeu_ps(to, a); }
  static INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }
  // Numbers of sixteen bits, in pairs of 32.
  static INLINE I zero_pairs() { return _mm512_setzero_si512(); }
  static INLINE I load_pairs(const void* from) { return _mm512_loadu_si512(from); }
  static INLINE I set1_pair(const void* from) { return _mm512_castps_si512(set1(*static_cast<const float*>(from))); }
  // sum + a·b. By hand: through the intrinsics GCC 12 keeps sums in memory.
  static INLINE I dot(I sum, I a, I b) {
    I product;
    __asm__("vpmaddwd %2, %3, %1; vpaddd %1, %0, %0" : "+v"(sum), "=&v"(product) : "v"(a), "v"(b));
    return sum;
  }
  static INLINE V from_int(I a) { return _mm512_cvtepi32_ps(a); }
  static INLINE I magnitude_bits(V a) {
    return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
  }
  static INLINE I max_bits(I a, I b) { return _mm512_max_epi32(a, b); }
  static INLINE float largest_float(I a) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(a))));
  }
  static INLINE void store_rounded(int16_t* to, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
  }
};

struct Avx512Vnni : Avx512 {
  // By hand: through the intrinsic GCC 12 copies the sums around it, and is half as fast.
  static INLINE I dot(I sum, I a, I b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
};

}  // namespace

extern const Kernel avx512_kernel = make_kernel<Avx512>();
extern const Kernel avx512_vnni_kernel = make_kernel<Avx512Vnni>();

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
