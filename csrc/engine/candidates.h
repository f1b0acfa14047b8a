// The weights of all tokens, and drawing one of them: of all by id, or of the heaviest that make up a share. Sorts the few tokens
// among which the draw ends, not the vocabulary.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace kimi {

class Candidates {
 public:
  // Weights e^((score - top) * inverse) of all tokens; where the exponent is below `floor` (-28 to 0) the weight is 0. top: the
  // largest score; scores may be -inf.
  void weigh(std::span<const float> scores, float top, float inverse, float floor);
  // The token that a number in [0, 1) falls upon when the weights lie one after the other, by id.
  int32_t draw(double uniform) const;
  // The same for the `count` heaviest, and of them the fewest that together have the share `top_p`, one at least; the heaviest
  // first, the smaller id first among equals.
  int32_t draw_heaviest(double uniform, int64_t count, double top_p);

 private:
  struct Entry {
    float weight;
    int32_t token;
  };
  struct Bin {  // of weights that share their leading bits
    double sum = 0;
    int64_t count = 0;
  };
  static constexpr int kBinShift = 17;          // 64 bins between a number and its double
  static constexpr uint32_t kOne = 0x3f800000;  // the bits of 1.0f
  static constexpr size_t kBins = 41 * 64;      // down to 2^-41 < e^-28
  static constexpr int64_t kBlock = 256;        // weights that are summed up together
  struct Heaviest {                             // all of the bins before `bin`, and the n heaviest of that
    size_t bin = 0;
    int64_t n = 0;
    double before = 0, sum = 0;  // what they weigh
  };
  int32_t walk(size_t block, double target) const;
  static size_t bin_of(float weight);
  void fill_bins();
  const std::vector<Entry>& sorted(size_t bin);
  Heaviest heaviest(int64_t count, double share);

  std::vector<float> weights_;
  std::vector<double> block_sums_;
  std::vector<Bin> bins_;
  std::vector<Entry> sorted_;  // of bin sorted_bin_, the heaviest first
  size_t sorted_bin_ = kBins;
};

}  // namespace kimi
