// All block formats. A new one is its header, included here, and a row of KIMI_QUANT_TYPES in format.h: it loads, decodes and
// multiplies on every instruction set. Extras, each where its header says how to add one: lanes of its own in
// backend/cpu/loops/lane_formats.h, an encoder in encode/table.h.
#pragma once
#include "quant/float.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
