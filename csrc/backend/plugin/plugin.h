// What a backend in a library of its own exports, so that the package carries no GPU code and needs no driver. The two sides
// exchange C++ objects: they have to be built from the same headers by the same compiler, which KIMI_PLUGIN_ABI names.
#pragma once
#include "backend/registry.h"

namespace kimi {

using PluginAbi = const char*();
// Throws what make_backend throws; the caller owns the result.
using PluginMake = Backend*(const BackendOptions& options);

constexpr const char* kPluginAbiName = "kimi_plugin_abi";
constexpr const char* kPluginMakeName = "kimi_plugin_make";

}  // namespace kimi
