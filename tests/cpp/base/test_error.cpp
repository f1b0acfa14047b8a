#include "base/error.h"
#include "expect_error.h"

using kimi::ErrorKind;

TEST_CASE("fail carries kind, code and the formatted message") {
  const std::string message = kimi::expect_error(ErrorKind::bad_image, "image.size",
                                                 [] { kimi::fail(ErrorKind::bad_image, "image.size", "%d x %s", 3, "4"); });
  CHECK(message == "3 x 4");
}

TEST_CASE("a message may be of any length") {
  const std::string longer(100000, 'x');
  CHECK(kimi::format_string("%s%c", longer.c_str(), 'y') == longer + 'y');
  CHECK(kimi::format_string("%s", "").empty());
}

TEST_CASE("a message is not a format") {
  const kimi::Error error(ErrorKind::bad_request, "a.b", "100 %s %n");
  CHECK(std::string(error.what()) == "100 %s %n");
}

TEST_CASE("KIMI_CHECK throws only when its condition is false, and evaluates it once") {
  int calls = 0;
  KIMI_CHECK(++calls == 1, ErrorKind::bad_request, "request.n", "n is %d", calls);
  CHECK(calls == 1);
  kimi::expect_error(ErrorKind::bad_request, "request.n",
                     [&] { KIMI_CHECK(++calls == 1, ErrorKind::bad_request, "request.n", "n is %d", calls); });
  CHECK(calls == 2);
}

TEST_CASE("KIMI_CHECK is one statement") {
  bool reached = false;
  if (false)
    KIMI_CHECK(false, ErrorKind::bad_request, "request.n", "not reached");
  else
    reached = true;
  CHECK(reached);
}

TEST_CASE("KIMI_DCHECK names the place and the condition") {
  const std::string message = kimi::expect_error(ErrorKind::internal, "internal.check", [] { KIMI_DCHECK(1 + 1 == 3); });
  CHECK(message.find("test_error.cpp") != std::string::npos);
  CHECK(message.find("1 + 1 == 3") != std::string::npos);
}
