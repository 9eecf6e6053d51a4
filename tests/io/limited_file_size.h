// A disk that fills up, for tests: works for every user and needs no mount.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

namespace moe {

// Files of this process can't grow beyond `bytes` while this lives: writing fails with
// EFBIG.
class LimitedFileSize {
 public:
  explicit LimitedFileSize(rlim_t bytes) {
    previous_handler_ = signal(SIGXFSZ, SIG_IGN);
    EXPECT_EQ(getrlimit(RLIMIT_FSIZE, &previous_), 0);
    rlimit limit = previous_;
    limit.rlim_cur = bytes;
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~LimitedFileSize() {
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &previous_), 0);
    signal(SIGXFSZ, previous_handler_);
  }

 private:
  rlimit previous_;
  void (*previous_handler_)(int);
};

}  // namespace moe
