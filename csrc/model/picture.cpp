#include "model/picture.h"

#include "base/error.h"

namespace kimi {

Picture::Picture(const VisionConfig& config, const uint8_t* pixels, int64_t height, int64_t width)
    : pixels_(pixels), height_(height), width_(width), grid_h_(height / config.patch_size), grid_w_(width / config.patch_size) {
  const int64_t unit = config.patch_size * config.merge, limit = config.max_grid_side * config.patch_size;
  KIMI_CHECK(height > 0 && width > 0 && height % unit == 0 && width % unit == 0, ErrorKind::bad_image, "image.size",
             "picture of %lld x %lld pixels: both sides must be positive multiples of %lld (the processor pads them)",
             static_cast<long long>(width), static_cast<long long>(height), static_cast<long long>(unit));
  KIMI_CHECK(
      height < limit && width < limit, ErrorKind::bad_image, "image.too_many_patches",
      "picture of %lld x %lld pixels: a side must stay below %lld pixels (%lld patches): scale it down or cut it into parts",
      static_cast<long long>(width), static_cast<long long>(height), static_cast<long long>(limit),
      static_cast<long long>(config.max_grid_side));
}

}  // namespace kimi
