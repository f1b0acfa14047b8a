// Attention of one picture: every patch sees every patch.
#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/attention.h"
#include "base/error.h"

namespace kimi::cuda {

void CudaBackend::vit_attention(const VitAttentionArgs& args) {
  const Lock lock(device_.lock());
  const int64_t n = args.n, hidden = args.hidden, head_dim = hidden / args.num_heads;
  KIMI_CHECK(head_dim <= PictureSource::kWidth, ErrorKind::unsupported, "device.head",
             "the backend cuda knows heads of at most %d numbers, the tower has %lld: use the backend cpu", PictureSource::kWidth,
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
    part.numbers = args.numbers;
    part.out = parts[i];
    linear(part);
    if (i < 2)
      run_each("rotate_patches", rotate_patches, n * hidden / 2,
               RotatePatchesArgs{parts[i], args.cos_sin, n, static_cast<int>(hidden), static_cast<int>(head_dim)});
  }
  auto* attended = scratch<float>(&attended_, n * hidden);
  run("attend_picture", attend_picture,
      dim3(static_cast<unsigned>((n + kQueries - 1) / kQueries), static_cast<unsigned>(args.num_heads)), kAttentionThreads,
      sizeof(AttentionShared<PictureSource::kWidth>),
      PictureArgs{parts[0], parts[1], parts[2], static_cast<int>(n), static_cast<int>(hidden), static_cast<int>(head_dim),
                  1.0f / std::sqrt(static_cast<float>(head_dim)), attended});
  LinearArgs o{};
  o.x = attended;
  o.n = n;
  o.w = args.o;
  o.bias = args.o_bias;
  o.add = true;
  o.numbers = args.numbers;
  o.out = args.out;
  linear(o);
}

}  // namespace kimi::cuda
