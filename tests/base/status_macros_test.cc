#include "common/base/status_macros.h"

#include <gtest/gtest.h>

#include <memory>

namespace moe {
namespace {

absl::Status ReturnIfError(const absl::Status& status) {
  RETURN_IF_ERROR(status);
  return absl::AlreadyExistsError("went on");
}

absl::StatusOr<int> Plus(absl::StatusOr<int> a, absl::StatusOr<int> b) {
  ASSIGN_OR_RETURN(const int x, std::move(a));
  int y = 0;
  ASSIGN_OR_RETURN(y, std::move(b));
  return x + y;
}

absl::StatusOr<std::unique_ptr<int>> Pass(absl::StatusOr<std::unique_ptr<int>> value) {
  ASSIGN_OR_RETURN(std::unique_ptr<int> moved, std::move(value));
  return moved;
}

TEST(StatusMacrosTest, ReturnIfError) {
  EXPECT_EQ(ReturnIfError(absl::OkStatus()).message(), "went on");
  EXPECT_EQ(ReturnIfError(absl::AbortedError("no")), absl::AbortedError("no"));
}

TEST(StatusMacrosTest, AssignOrReturn) {
  EXPECT_EQ(*Plus(1, 2), 3);
  EXPECT_EQ(Plus(1, absl::AbortedError("b")).status(), absl::AbortedError("b"));
  EXPECT_EQ(Plus(absl::AbortedError("a"), absl::AbortedError("b")).status(),
            absl::AbortedError("a"));
  EXPECT_EQ(**Pass(std::make_unique<int>(7)), 7);
}

TEST(AnnotateTest, PutsTheContextFirst) {
  absl::Status status = absl::NotFoundError("gone");
  status.SetPayload("url", absl::Cord("payload"));
  const absl::Status annotated = Annotate(status, "file x");
  EXPECT_EQ(annotated.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(annotated.message(), "file x: gone");
  EXPECT_EQ(annotated.GetPayload("url"), absl::Cord("payload"));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "file x").ok());
}

}  // namespace
}  // namespace moe
