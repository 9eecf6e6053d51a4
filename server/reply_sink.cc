#include "server/reply_sink.h"

#include <string>

#include "common/net/checksum.h"

namespace moe {

std::shared_ptr<const v1::ExchangeResponse> FailureResponse(uint64_t generation,
                                                            const absl::Status& cause) {
  auto response = std::make_shared<v1::ExchangeResponse>();
  response->set_generation(generation);
  response->mutable_failure()->set_code(cause.raw_code());
  response->mutable_failure()->set_message(std::string(cause.message()));
  Seal(response.get());
  return response;
}

}  // namespace moe
