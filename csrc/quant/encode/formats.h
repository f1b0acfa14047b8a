// What each searched format is to the encoders: grid, levels, and how far the search goes: the candidates beyond which the
// error was seen to change little. tests/core/test_encoders.py holds the errors that result.
#pragma once
#include "quant/encode/plain.h"
#include "quant/encode/small.h"
#include "quant/encode/super_offset.h"

namespace kimi::quant {
namespace {

struct EncodeQ2_K {
  using Block = BlockQ2_K;
  static constexpr int kElems = 16, kGroups = 16, kRefits = 2, kRounds = 2;
  static constexpr int kReach = 1, kMinReach = 1, kReachAgain = 1, kMinReachAgain = 1;
  static constexpr float kLevels = 15, kMost = 3, kLarge = 1;
  static constexpr Stretch kStretches[] = {{0, 0},       {0.4f, 0},    {0.8f, 0},    {-0.4f, 0}, {0.4f, 0.4f}, {0.8f, 0.4f},
                                           {0.8f, 0.8f}, {1.2f, 0.4f}, {1.2f, 0.8f}, {0, -0.3f}, {0, 0.3f},    {-0.4f, -0.4f}};
  static constexpr float kDivisors[16] = {16, 15.5f, 15, 14.5f, 14, 13.5f, 13, 12.5f, 12, 11.5f, 11, 10.5f, 10, 9.5f, 9, 8.5f};
  KIMI_INLINE void write(const uint8_t* codes, const uint8_t* levels, const uint8_t* mins, uint16_t d, uint16_t dmin,
                         Block* block) {
    pack_q2_k(codes, levels, mins, block);
    store_u16(block->d, d);
    store_u16(block->dmin, dmin);
  }
};

// 6-bit levels of groups of 32, as Q4_K and Q5_K have them.
struct EncodeOf32 {
  static constexpr int kElems = 32, kGroups = 8;
  static constexpr float kLevels = 63, kLarge = 0.5f;
  static constexpr float kDivisors[16] = {64, 63.5f, 63, 62.5f, 62, 61.5f, 61, 60.5f, 60, 59.5f, 59, 58.5f, 58, 57, 56, 55};
};
struct EncodeQ4_K : EncodeOf32 {
  using Block = BlockQ4_K;
  static constexpr int kRefits = 1, kRounds = 1, kReach = 1, kMinReach = 1, kReachAgain = 1, kMinReachAgain = 0;
  static constexpr float kMost = 15;
  static constexpr Stretch kStretches[] = {{0, 0}, {0.5f, 0},  {0.5f, 0.5f},   {1, 0.5f}, {1.5f, 0.75f}, {1, 0},
                                           {1, 1}, {-0.5f, 0}, {-0.5f, -0.5f}, {2, 1},    {0, 0.25f},    {0, -0.25f}};
  KIMI_INLINE void write(const uint8_t* codes, const uint8_t* levels, const uint8_t* mins, uint16_t d, uint16_t dmin,
                         Block* block) {
    pack_q4_k(codes, levels, mins, block);
    store_u16(block->d, d);
    store_u16(block->dmin, dmin);
  }
};
struct EncodeQ5_K : EncodeOf32 {
  using Block = BlockQ5_K;
  static constexpr int kRefits = 1, kRounds = 1, kReach = 1, kMinReach = 1, kReachAgain = 1, kMinReachAgain = 0;
  static constexpr float kMost = 31;
  static constexpr Stretch kStretches[] = {{0, 0}, {0.5f, 0},  {0.5f, 0.5f},   {1, 0.5f}, {1.5f, 0.75f}, {1, 0},
                                           {1, 1}, {-0.5f, 0}, {-0.5f, -0.5f}, {2, 1},    {0, 0.25f},    {0, -0.25f}};
  KIMI_INLINE void write(const uint8_t* codes, const uint8_t* levels, const uint8_t* mins, uint16_t d, uint16_t dmin,
                         Block* block) {
    pack_q5_k(codes, levels, mins, block);
    store_u16(block->d, d);
    store_u16(block->dmin, dmin);
  }
};

struct EncodeQ3_K {
  using Block = BlockQ3_K;
  using Grid = IntegerGrid<-4, 3>;
  static constexpr int kElems = 16, kGroups = 16, kRounds = 2;
  static constexpr int kReach = 2, kReachAgain = 1, kReachKnown = 6, kLevelLow = -32, kLevelHigh = 31;
  static constexpr float kLarge = 0.5f;
  static constexpr float kPolish[] = {1, 1};
  static constexpr float kTargets[] = {-4, -4.6f, -4.4f, -4.2f, -3.8f, -3.6f, -3.4f, -3.2f,
                                       -3, -2.7f, 3.4f,  3.2f,  3,     2.8f,  2.5f,  2.2f};
  static constexpr float kDivisors[32] = {-32, -31.5f, -31, -30.5f, -30, -29.5f, -29,   -28.5f, -28,   -27, -26,
                                          -33, -34,    -36, -40,    -48, 31,     30.5f, 30,     29.5f, 29,  28.5f,
                                          28,  27,     26,  32,     34,  36,     40,    48,     56,    64};
  KIMI_INLINE void write(const uint8_t* codes, const uint8_t* levels, uint16_t d, Block* block) {
    pack_q3_k(codes, levels, block);
    store_u16(block->d, d);
  }
};
struct EncodeQ6_K {
  using Block = BlockQ6_K;
  using Grid = IntegerGrid<-32, 31>;
  static constexpr int kElems = 16, kGroups = 16, kRounds = 1;
  static constexpr int kReach = 1, kReachAgain = 0, kReachKnown = 4, kLevelLow = -128, kLevelHigh = 127;
  static constexpr float kLarge = 0.5f;
  static constexpr float kPolish[] = {1};
  static constexpr float kTargets[] = {-32, -32.4f, -31.6f, -31.2f, -30.8f, -30.4f, -30, -29.6f, 31, 31.4f};
  static constexpr float kDivisors[16] = {-128, -127, -126, -125, -124, -123, -122, -121,
                                          -120, -119, -118, -117, -116, -115, -114, -113};
  KIMI_INLINE void write(const uint8_t* codes, const uint8_t* levels, uint16_t d, Block* block) {
    pack_q6_k(codes, levels, block);
    store_u16(block->d, d);
  }
};
struct EncodeIQ4_XS {
  using Block = BlockIQ4_XS;
  using Grid = Iq4Grid;
  static constexpr int kElems = 32, kGroups = 8, kRounds = 1;
  static constexpr int kReach = 1, kReachAgain = 1, kReachKnown = 2, kLevelLow = -32, kLevelHigh = 31;
  static constexpr float kLarge = 0.5f;
  static constexpr float kPolish[] = {1};
  static constexpr float kTargets[] = {-127, -133, -121, -115, -110, -105, -100, 113, 119, 107, 101, 95};
  static constexpr float kDivisors[32] = {-32, -31.5f, -31, -30.5f, -30, -29.5f, -29,   -28.5f, -28,   -27, -26,
                                          -33, -34,    -36, -40,    -48, 31,     30.5f, 30,     29.5f, 29,  28.5f,
                                          28,  27,     26,  32,     34,  36,     40,    48,     56,    64};
  KIMI_INLINE void write(const uint8_t* codes, const uint8_t* levels, uint16_t d, Block* block) {
    pack_iq4_xs(codes, levels, block);
    store_u16(block->d, d);
  }
};
// Single blocks: a closer look around the best scale.
static constexpr float kFinePolish[] = {1,     0.985f, 1.015f, 0.97f, 1.03f, 0.995f, 1.005f,
                                        0.99f, 1.01f,  0.98f,  1.02f, 0.96f, 1.04f,  1};

struct EncodeIQ4_NL {
  using Block = BlockIQ4_NL;
  using Grid = Iq4Grid;
  static constexpr int kRounds = 1;
  static constexpr float kLarge = 0.5f;
  static constexpr auto& kPolish = kFinePolish;
  static constexpr float kTargets[] = {-127, -133, -121, -115, -110, -105, -100, 113, 119, 107, 101, 95};
  KIMI_INLINE void write(const uint8_t* codes, uint16_t d, Block* block) {
    store_u16(block->d, d);
    pack_nibbles(codes, block->qs);
  }
};
struct EncodeQ4_0 {
  using Block = BlockQ4_0;
  using Grid = IntegerGrid<-8, 7>;
  static constexpr int kRounds = 2;
  static constexpr float kLarge = 0;
  static constexpr auto& kPolish = kFinePolish;
  static constexpr float kTargets[] = {-8,    -8.6f, -8.3f, -7.8f, -7.6f, -7.4f, -7.2f, -7,   -6.7f,
                                       -6.4f, -6,    7.5f,  7.25f, 7,     6.75f, 6.5f,  6.2f, 5.8f};
  KIMI_INLINE void write(const uint8_t* codes, uint16_t d, Block* block) {
    store_u16(block->d, d);
    pack_nibbles(codes, block->qs);
  }
};
struct EncodeQ5_0 {
  using Block = BlockQ5_0;
  using Grid = IntegerGrid<-16, 15>;
  static constexpr int kRounds = 2;
  static constexpr float kLarge = 0;
  static constexpr auto& kPolish = kFinePolish;
  static constexpr float kTargets[] = {-16,    -16.8f, -16.5f, -16.25f, -15.75f, -15.5f, -15.25f, -15,   -14.75f, -14.5f,
                                       -14.2f, -13.8f, -13.4f, 15.5f,   15.25f,  15,     14.75f,  14.5f, 14.2f,   13.8f};
  KIMI_INLINE void write(const uint8_t* codes, uint16_t d, Block* block) {
    store_u16(block->d, d);
    pack_nibbles(codes, block->qs);
    pack_fifth_bits(codes, block->qh);
  }
};
// Single blocks are searched with importance only, and more closely.
static constexpr Stretch kFineStretches[] = {
    {0, 0},          {0.25f, 0},     {0.5f, 0},      {0.75f, 0},    {1, 0},      {0.25f, 0.25f},   {0.5f, 0.25f},
    {0.75f, 0.25f},  {0.5f, 0.5f},   {0.75f, 0.5f},  {1, 0.5f},     {1, 0.75f},  {1, 1},           {1.25f, 0.5f},
    {1.5f, 0.75f},   {1.5f, 1},      {2, 1},         {2.5f, 1.25f}, {-0.25f, 0}, {-0.25f, -0.25f}, {-0.5f, 0},
    {-0.5f, -0.25f}, {-0.5f, -0.5f}, {-0.8f, -0.4f}, {0, 0.25f},    {0, -0.25f}, {0.25f, -0.25f}};
struct EncodeQ4_1 {
  using Block = BlockQ4_1;
  static constexpr int kRefits = 2, kRounds = 2;
  static constexpr float kMost = 15, kLarge = 0;
  static constexpr auto& kStretches = kFineStretches;
  KIMI_INLINE void write(const uint8_t* codes, uint16_t d, uint16_t m, Block* block) {
    store_u16(block->d, d);
    store_u16(block->m, m);
    pack_nibbles(codes, block->qs);
  }
};
struct EncodeQ5_1 {
  using Block = BlockQ5_1;
  static constexpr int kRefits = 2, kRounds = 2;
  static constexpr float kMost = 31, kLarge = 0;
  static constexpr auto& kStretches = kFineStretches;
  KIMI_INLINE void write(const uint8_t* codes, uint16_t d, uint16_t m, Block* block) {
    store_u16(block->d, d);
    store_u16(block->m, m);
    pack_nibbles(codes, block->qs);
    pack_fifth_bits(codes, block->qh);
  }
};

}  // namespace
}  // namespace kimi::quant
