// CHECK that an expression throws kimi::Error with a code, and give the message back to look at.
#pragma once
#include <doctest/doctest.h>

#include <string>

#include "base/error.h"

namespace kimi {

template <typename Body>
std::string expect_error(ErrorKind kind, const char* code, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(error.code() == code);
    CHECK(error.kind() == kind);
    return error.what();
  }
  FAIL_CHECK("nothing was thrown, expected " << code);
  return "";
}

}  // namespace kimi
