// Attention of one picture: every patch sees every patch.
#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/attention.h"
#include "backend/cuda/kernels/attention_72.h"
#include "base/error.h"

namespace kimi::cuda {
namespace {

constexpr int kWarpsOfQueries = 4;  // of 16 queries
constexpr float kLog2E = 1.44269504f;

}  // namespace

void CudaBackend::vit_attention(const VitAttentionArgs& args) {
  const Lock lock(device_.lock());
  const int64_t n = args.n, hidden = args.hidden, head_dim = hidden / args.num_heads;
  KIMI_CHECK(head_dim <= PictureSource::kWidth, ErrorKind::unsupported, "device.head",
             "the backend cuda knows heads of at most %d numbers, the tower has %lld: use the device cpu", PictureSource::kWidth,
             static_cast<long long>(head_dim));
  const Matrix* weights[3] = {&args.q, &args.k, &args.v};
  const float* biases[3] = {args.q_bias, args.k_bias, args.v_bias};
  float* parts[3] = {scratch<float>(&q_, n * hidden), scratch<float>(&k_, n * hidden), scratch<float>(&v_, n * hidden)};
  for (int i = 0; i < 3; ++i) {
    LinearArgs part{};
    part.x = args.x;
    part.n = n;
    part.w = *weights[i];
    part.bias = biases[i];
    part.compute_type = args.compute_type;
    part.out = parts[i];
    linear(part);
  }
  auto* attended = scratch<float>(&attended_, n * hidden);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  if (args.compute_type == ComputeType::bf16 && head_dim == kHead) {
    auto* heads = scratch<uint16_t>(&converted_, 3 * n * hidden);
    run_each(
        "pack_heads", pack_heads, 3 * n * hidden / 2,
        PackHeadsArgs{parts[0], parts[1], parts[2], args.cos_sin, static_cast<int>(n), static_cast<int>(hidden), kHead, heads});
    run("attend_heads_of_72", attend_heads_of_72<kWarpsOfQueries>,
        dim3(static_cast<unsigned>((n + kWarpsOfQueries * 16 - 1) / (kWarpsOfQueries * 16)),
             static_cast<unsigned>(args.num_heads)),
        kWarpsOfQueries * kWarp, sizeof(HeadsOf72Shared<kWarpsOfQueries>),
        HeadsOf72Args{heads, heads + n * hidden, heads + 2 * n * hidden, attended, static_cast<int>(n),
                      static_cast<int>(args.num_heads), scale * kLog2E});
  } else {
    for (int i = 0; i < 2; ++i)
      run_each("rotate_patches", rotate_patches, n * hidden / 2,
               RotatePatchesArgs{parts[i], args.cos_sin, n, static_cast<int>(hidden), static_cast<int>(head_dim)});
    run("attend_picture", attend_picture,
        dim3(static_cast<unsigned>((n + kQueries - 1) / kQueries), static_cast<unsigned>(args.num_heads)), kAttentionThreads,
        sizeof(AttentionShared<PictureSource::kWidth>),
        PictureArgs{parts[0], parts[1], parts[2], static_cast<int>(n), static_cast<int>(hidden), static_cast<int>(head_dim),
                    scale, attended});
  }
  LinearArgs o{};
  o.x = attended;
  o.n = n;
  o.w = args.o;
  o.bias = args.o_bias;
  o.add = true;
  o.compute_type = args.compute_type;
  o.out = args.out;
  linear(o);
}

}  // namespace kimi::cuda
