// The backends, by name. Which of them this build has is decided by what is compiled, not by conditions here: a backend that is
// left out has a row of its own in absent/, which says so.
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
// Throws Error(bad_request, "device.unknown") for other names, Error(unsupported, "device.not_built") for a backend that was
// left out of this build, and what the backend says of its options.
std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options);
// Throws Error(bad_request, "device.option") for options other than these.
void check_options(const std::string& name, const BackendOptions& options, const std::vector<std::string>& known);

// One for each row, in cpu/, cuda/ or absent/.
std::unique_ptr<Backend> make_cpu(const BackendOptions& options);
std::unique_ptr<Backend> make_cuda(const BackendOptions& options);

}  // namespace kimi
