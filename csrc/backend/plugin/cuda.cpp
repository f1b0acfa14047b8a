// The registry's row of the CUDA backend: a library that is loaded when it is asked for, beside this one unless the option
// "library" names another.
#include <dlfcn.h>
#include <unistd.h>

#include <cstring>

#include "backend/plugin/plugin.h"
#include "base/error.h"

namespace kimi {
namespace {

constexpr const char* kLibrary = "libkimi_cuda.so";

std::string beside_this_library() {
  Dl_info info{};
  if (!::dladdr(reinterpret_cast<const void*>(&make_cuda), &info) || !info.dli_fname) return kLibrary;
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? kLibrary : path.substr(0, slash + 1) + kLibrary;
}

template <typename Function>
Function* find(void* library, const char* name, const std::string& path) {
  void* found = ::dlsym(library, name);
  KIMI_CHECK(found, ErrorKind::unsupported, "device.plugin", "%s: no function %s in it: it is not a backend of this runtime",
             path.c_str(), name);
  return reinterpret_cast<Function*>(found);
}

}  // namespace

std::unique_ptr<Backend> make_cuda(const BackendOptions& given) {
  BackendOptions options = given;
  const auto named = options.extract("library");
  const std::string path = named ? named.mapped() : beside_this_library();
  KIMI_CHECK(named || ::access(path.c_str(), F_OK) == 0, ErrorKind::unsupported, "device.plugin",
             "this installation has no CUDA backend (%s): use the device cpu; docs/cuda.md says how to build it", kLibrary);
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays: what it made may live on
  KIMI_CHECK(library, ErrorKind::unsupported, "device.plugin",
             "the CUDA backend could not be loaded (%s): use the device cpu, or install the library that belongs to this version",
             ::dlerror());
  const std::string abi = find<PluginAbi>(library, kPluginAbiName, path)();
  KIMI_CHECK(abi == KIMI_PLUGIN_ABI, ErrorKind::unsupported, "device.plugin",
             "%s: it was built for \"%s\", expected \"%s\": install the library that belongs to this version", path.c_str(),
             abi.c_str(), KIMI_PLUGIN_ABI);
  return std::unique_ptr<Backend>(find<PluginMake>(library, kPluginMakeName, path)(options));
}

}  // namespace kimi
