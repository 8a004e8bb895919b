-- The request (a POST of the file named after `--`, else a GET) and the result as one line of JSON.
-- With a path and a share after the file, that share of requests, drawn by chance, goes to the path instead.


function init(args)
  if args[1] then
    local file = assert(io.open(args[1], "rb"))
    wrk.method = "POST"
    wrk.body = file:read("*a")
    wrk.headers["Content-Type"] = "application/json"
    file:close()
  end
  if args[2] then
    local requests = {wrk.format(), wrk.format(nil, args[2])}
    local share = tonumber(args[3])
    function request()
      return requests[math.random() < share and 2 or 1]
    end
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    'RESULT {"requests": %d, "duration": %d, "p50": %d, "p99": %d, "errors": '
      .. '{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
