// Operations on single rows.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/rows.h"

namespace kimi::cuda {

// Decoded on the host, where the table is.
void CudaBackend::embed(const Matrix& table, const Step& step, float* out) {
  const quant::Format& format = quant::format_of(table.type);
  for (const Step::Tokens& tokens : step.tokens()) {
    const int32_t* ids = step.ids().data() + tokens.first;
    std::vector<float> rows(static_cast<size_t>(tokens.n * table.cols));
    for (int64_t i = 0; i < tokens.n; ++i)
      format.decode(table.data + ids[i] * table.row_bytes, rows.data() + i * table.cols, table.cols);
    upload(out + tokens.row0 * table.cols, rows.data(), static_cast<int64_t>(rows.size() * sizeof(float)));
  }
}

// By way of scratch: rows that move down would overwrite others that have not moved yet.
void CudaBackend::gather_rows(const Step& step, const float* x, int64_t dim, float* out) {
  const Lock lock(device_.lock());
  const int64_t n = step.n_wanted();
  if (n == 0) return;
  upload_rows(step);
  auto* gathered = scratch<float>(&gathered_, n * dim);
  run_each("copy_rows", copy_rows, n * dim, CopyRowsArgs{x, values_.wanted, n, static_cast<int>(dim), gathered});
  copy(out, gathered, n * dim * static_cast<int64_t>(sizeof(float)));
}

void CudaBackend::rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) {
  const Lock lock(device_.lock());
  if (n > 0)
    run("rms_norm", cuda::rms_norm, dim3(static_cast<unsigned>(n)), kRowThreads, sizeof(SumShared),
        NormArgs{x, weight, nullptr, eps, static_cast<int>(dim), out});
}

void CudaBackend::layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim,
                             float* out) {
  const Lock lock(device_.lock());
  if (n > 0)
    run("layer_norm", cuda::layer_norm, dim3(static_cast<unsigned>(n)), kRowThreads, sizeof(SumShared),
        NormArgs{x, weight, bias, eps, static_cast<int>(dim), out});
}

void CudaBackend::add(const float* x, int64_t n, float* out) {
  const Lock lock(device_.lock());
  run_each("add", finish_rows, n, FinishArgs{x, nullptr, n, 1, 1, Epilogue::none, true, out});
}

void CudaBackend::patches(const PatchArgs& args) {
  const Lock lock(device_.lock());
  const int64_t bytes = args.height * args.width * 3;
  auto* pixels = scratch<uint8_t>(&pixels_, bytes);
  upload(pixels, args.pixels, bytes);
  const PatchesArgs cut{pixels,
                        static_cast<int>(args.height),
                        static_cast<int>(args.width),
                        static_cast<int>(args.patch_size),
                        {args.mean[0], args.mean[1], args.mean[2]},
                        {args.std[0], args.std[1], args.std[2]},
                        args.out};
  const int64_t p = args.patch_size;
  run_each("cut_patches", cut_patches, args.height / p * (args.width / p) * 3 * p * p, cut);
}

void CudaBackend::merge_rows(const MergeArgs& args) {
  const Lock lock(device_.lock());
  run_each("merge_patches", merge_patches, args.grid_h * args.grid_w * args.dim,
           MergeRowsArgs{args.x, static_cast<int>(args.grid_h), static_cast<int>(args.grid_w), static_cast<int>(args.merge),
                         static_cast<int>(args.dim), args.out});
}

}  // namespace kimi::cuda
