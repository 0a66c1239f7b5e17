// AVX2 with fused multiply-add: eight numbers a vector, sixteen vectors. And the same with AVX-VNNI.
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "kernel.hpp"

namespace {

struct Avx2 {
  // 6 × 2 sums, a row of two vectors and one number of the other matrix fill fifteen of the sixteen registers.
  static constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
  using V = __m256;
  using I = __m256i;
  static INLINE V zero() { return _mm256_setzero_ps(); }
  static INLINE V set1(float a) { return _mm256_set1_ps(a); }
  static INLINE V load(const float* from) { return _mm256_loadu_ps(from); }
  static INLINE void store(float* to, V a) { _mm256_storeu_ps(to, a); }
  static INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }
  // Numbers of sixteen bits, in pairs of 32.
  static INLINE I zero_pairs() { return _mm256_setzero_si256(); }
  static INLINE I load_pairs(const void* from) { return _mm256_loadu_si256(static_cast<const I*>(from)); }
  static INLINE I set1_pair(const void* from) {
    return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(from)));
  }
  // sum + a·b. By hand: through the intrinsics GCC 12 keeps sums in memory.
  static INLINE I dot(I sum, I a, I b) {
    I product;
    __asm__("vpmaddwd %2, %3, %1; vpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
    return sum;
  }
  static INLINE V from_int(I a) { return _mm256_cvtepi32_ps(a); }
  static INLINE I magnitude_bits(V a) {
    return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff));
  }
  static INLINE I max_bits(I a, I b) { return _mm256_max_epi32(a, b); }
  static INLINE float largest_float(I a) {
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
  }
  static INLINE void store_rounded(int16_t* to, V a) {
    const I whole = _mm256_cvtps_epi32(a);
    const __m128i short_ones = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), short_ones);
  }
};

struct AvxVnni : Avx2 {
  // By hand, so that no compiler option is needed that would use it elsewhere too.
  static INLINE I dot(I sum, I a, I b) {
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
  }
};

}  // namespace

extern const Kernel avx2_kernel = make_kernel<Avx2>();
extern const Kernel avx_vnni_kernel = make_kernel<AvxVnni>();

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
