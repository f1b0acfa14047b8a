// The backends, by name. What is here is decided by what is compiled or, in plugin/, by which libraries are found, not
// by conditions.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace kimi {

// What a backend is asked for beside its name. Each knows its own options, and refuses others.
using BackendOptions = std::map<std::string, std::string>;

std::vector<std::string> backend_names();
// Throws Error(bad_request, "device.unknown") for other names, Error(unsupported, "device.plugin") for a backend whose
// library cannot be loaded, Error(unsupported, "device.none") without such a device, and what the backend says of its options.
std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options);
// Throws Error(bad_request, "device.option") for options other than these.
void check_options(const std::string& name, const BackendOptions& options, const std::vector<std::string>& known);

// One for each row, in cpu/ or plugin/.
std::unique_ptr<Backend> make_cpu(const BackendOptions& options);
std::unique_ptr<Backend> make_cuda(const BackendOptions& options);

}  // namespace kimi
