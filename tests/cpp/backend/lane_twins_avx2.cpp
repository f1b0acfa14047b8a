// Compiled for AVX2, so without std headers: their inline functions might be the copies that the linker keeps.
#ifdef __AVX2__
#include "backend/cpu/kernels/avx2/int8_lanes.h"
#include "lane_twins.h"

namespace {

using kimi::cpu::Lanes;
using kimi::quant::Type;
namespace loops = kimi::cpu::loops;

template <class Way>
struct Recorder {
  using Lanes = ::Lanes;
  Unpacked* out;

  template <int g, int n>
  void group(const Lanes::U* u, Lanes::F scale, Lanes::F min) {
    alignas(32) uint8_t bytes[8][4];
    alignas(32) float floats[8];
    for (int i = 0; i < n; ++i) {
      Lanes::store(bytes, u[i]);
      for (int row = 0; row < 8; ++row)
        for (int j = 0; j < 4; ++j) out->q[row][4 * (g * n + i) + j] = bytes[row][j] - Way::bias;
    }
    Lanes::store_floats(floats, scale);
    for (int row = 0; row < 8; ++row) out->scale[row][g] = floats[row];
    Lanes::store_floats(floats, min);
    for (int row = 0; row < 8; ++row) out->min[row][g] = floats[row];
  }
};

template <class Way, Type type>
void unpack_by(const uint8_t* blocks, Unpacked* out) {
  constexpr int kBytes = sizeof(typename kimi::quant::BlockTraits<type>::Block);
  Recorder<Way> recorder{out};
  Way::template run<Lanes>(loops::LaneRows<Lanes>::at(blocks, kBytes), recorder);
  if (!kimi::quant::BlockTraits<type>::has_min) __builtin_memset(out->min, 0, sizeof(out->min));
}

#define KIMI_TWIN(name, id)                                                                                      \
  {#name, sizeof(kimi::quant::BlockTraits<Type::name>::Block), unpack_by<loops::Unpack<Type::name>, Type::name>, \
   unpack_by<loops::UnpackByRow<Type::name>, Type::name>},
constexpr LaneTwin kTwins[] = {KIMI_QUANT_TYPES(KIMI_TWIN)};

}  // namespace

const LaneTwin* avx2_lane_twins(int* count) {
  *count = sizeof(kTwins) / sizeof(kTwins[0]);
  return kTwins;
}
#endif
