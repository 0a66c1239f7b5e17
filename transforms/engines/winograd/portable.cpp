// Plain loops: slow, but for any CPU. They say what the others have to compute, bit by bit.
#define UNROLL  // It would take the compiler minutes.
#include <cmath>
#include <cstring>

#include "kernel.hpp"

namespace {

struct Portable {
  static constexpr int LANES = 16, VECTORS = 1, ROWS = 4;
  struct V {
    float at[LANES];
  };
  // Of magnitudes the bits of a number, of pairs two int16, of sums an int32.
  struct I {
    int32_t at[LANES];
  };

  template <class To, class Function>
  static To each(Function function) {
    To result;
    for (int i = 0; i < LANES; i++) result.at[i] = function(i);
    return result;
  }

  static V zero() { return set1(0); }
  static V set1(float a) {
    return each<V>([&](int) { return a; });
  }
  static V load(const float* from) {
    return each<V>([&](int i) { return from[i]; });
  }
  static void store(float* to, V a) { std::memcpy(to, a.at, sizeof a.at); }
  static V add(V a, V b) {
    return each<V>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static V sub(V a, V b) {
    return each<V>([&](int i) { return a.at[i] - b.at[i]; });
  }
  static V mul(V a, V b) {
    return each<V>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static V fma(V a, V b, V c) {
    return each<V>([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
  }
  static V max(V a, V b) {
    return each<V>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static I zero_pairs() {
    return each<I>([](int) { return 0; });
  }
  static I load_pairs(const void* from) {
    I pairs;
    std::memcpy(pairs.at, from, sizeof pairs.at);
    return pairs;
  }
  static I set1_pair(const void* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return each<I>([&](int) { return pair; });
  }
  static I dot(I sum, I a, I b) {
    return each<I>([&](int i) {
      const auto low = [](int32_t pair) { return static_cast<int16_t>(pair & 0xffff); };
      const auto high = [](int32_t pair) { return static_cast<int16_t>(pair >> 16); };
      // Only a tile with NaN can overflow, whose scale is NaN too.
      const uint32_t lower = low(a.at[i]) * low(b.at[i]), upper = high(a.at[i]) * high(b.at[i]);
      return static_cast<int32_t>(static_cast<uint32_t>(sum.at[i]) + lower + upper);
    });
  }
  static V from_int(I a) {
    return each<V>([&](int i) { return static_cast<float>(a.at[i]); });
  }
  static I magnitude_bits(V a) {
    return each<I>([&](int i) {
      int32_t bits;
      std::memcpy(&bits, &a.at[i], sizeof bits);
      return bits & 0x7fffffff;
    });
  }
  static I max_bits(I a, I b) {
    return each<I>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static float largest_float(I a) {
    int32_t most = 0;
    for (int32_t bits : a.at) most = bits > most ? bits : most;
    float value;
    std::memcpy(&value, &most, sizeof value);
    return value;
  }
  static void store_rounded(int16_t* to, V a) {
    for (int i = 0; i < LANES; i++) {
      const float whole = std::nearbyint(a.at[i]);
      // NaN becomes what x86 makes of it.
      to[i] = whole >= -32768.0f && whole <= 32767.0f ? static_cast<int16_t>(whole) : INT16_MIN;
    }
  }
};

}  // namespace

extern const Kernel portable_kernel = make_kernel<Portable>();
