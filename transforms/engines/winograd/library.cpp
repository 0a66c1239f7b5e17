// What Python calls: which instruction sets there are, and the layers, with a check of what they are given.
#include <cstring>

#include "abi.hpp"
#include "matrices.hpp"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define PUBLIC extern "C" __attribute__((visibility("default")))

extern const Kernel portable_kernel;
#if defined(__x86_64__)
extern const Kernel avx2_kernel, avx_vnni_kernel, avx512_kernel, avx512_vnni_kernel;
#endif

namespace {

// One more whenever a structure or function here becomes another.
constexpr int VERSION = 1;
constexpr int BAD_ARGUMENT = 1;

struct InstructionSet {
  const char* name;
  const Kernel* kernel;
  bool (*is_here)();
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  // Intel's manual, volume 2, CPUID: leaf 7, subleaf 1, EAX bit 4.
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

// The fastest first.
const InstructionSet SETS[] = {
#if defined(__x86_64__)
    {"AVX-512 VNNI", &avx512_vnni_kernel, has_avx512_vnni},
    {"AVX-512", &avx512_kernel, has_avx512},
    {"AVX-VNNI", &avx_vnni_kernel, has_avx_vnni},
    {"AVX2", &avx2_kernel, has_avx2},
#endif
    {"portable", &portable_kernel, always},
};
constexpr int COUNT = sizeof SETS / sizeof *SETS;

// Only one that this CPU has: another's first instruction would end the process.
const Kernel* find(const char* name) {
  for (const InstructionSet& each : SETS)
    if (std::strcmp(each.name, name) == 0 && each.is_here()) return each.kernel;
  return nullptr;
}

constexpr int MULTIPLE = 64;

bool fits(int channels) { return channels > 0 && channels % MULTIPLE == 0; }

}  // namespace

PUBLIC int winograd_version() { return VERSION; }

// The name of the instruction set at a place, the fastest first; null behind the last, empty for one that isn't here.
PUBLIC const char* winograd_name(int place) {
  if (place < 0 || place >= COUNT) return nullptr;
  return SETS[place].is_here() ? SETS[place].name : "";
}

PUBLIC int winograd_panel(const char* name) {
  const Kernel* const kernel = find(name);
  return kernel ? kernel->panel : 0;
}

PUBLIC int64_t winograd_workspace(const char* name, int precision, int channels, int filters, int tiles) {
  const Kernel* const kernel = find(name);
  if (!kernel || precision < 0 || precision >= PRECISIONS || !fits(channels) || !fits(filters) || tiles < 1) return -1;
  return kernel->workspace[precision](channels, filters, tiles);
}

PUBLIC int winograd_conv(const char* name, int precision, const Conv* conv) {
  const Kernel* const kernel = find(name);
  if (!kernel || precision < 0 || precision >= PRECISIONS) return BAD_ARGUMENT;
  const bool is_good = conv->images > 0 && conv->side > 0 && fits(conv->channels) && fits(conv->filters) &&
                       conv->tiles > 0 && conv->in_pitch >= (conv->side + m - 1) / m * m + 2 &&
                       conv->out_pitch >= (conv->pooled ? conv->side / 2 : conv->side) + 2 &&
                       kernel->workspace[precision](conv->channels, conv->filters, conv->tiles) <= conv->workspace_bytes;
  if (!is_good) return BAD_ARGUMENT;
  kernel->conv[precision](*conv);
  return 0;
}

PUBLIC int winograd_direct(const char* name, const Direct* direct) {
  const Kernel* const kernel = find(name);
  const bool is_good = kernel && direct->images > 0 && direct->side >= 8 && direct->channels > 0 &&
                       fits(direct->filters) && direct->in_pitch >= direct->side + 2 &&
                       direct->out_pitch >= direct->side + 2;
  if (!is_good) return BAD_ARGUMENT;
  kernel->direct(*direct);
  return 0;
}

PUBLIC int winograd_dense(const char* name, const Dense* dense) {
  const Kernel* const kernel = find(name);
  if (!kernel || dense->rows < 1 || dense->depth < 1 || dense->columns < 1 || dense->columns % kernel->panel)
    return BAD_ARGUMENT;
  kernel->dense(*dense);
  return 0;
}
