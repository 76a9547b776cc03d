package localkafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
)

var errPortTaken = errors.New("port is taken")

// choosePorts returns the ports of the brokers and of their controllers. Free ones were free a moment ago, no more.
func choosePorts(ctx context.Context, first, brokers int) (clients, controllers []int, err error) {
	var config net.ListenConfig
	// All are held until the last is chosen, or one could be chosen twice.
	for i := range 2 * brokers {
		port := 0
		if first != 0 && i < brokers {
			port = first + i
		}
		ln, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil && port != 0 {
			return nil, nil, fmt.Errorf("start Kafka: %w: broker %d is to listen on 127.0.0.1:%d: %w; see who does (ss -ltnp), or choose another port",
				errPortTaken, i+1, port, err)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = ln.Close() }()
		port = ln.Addr().(*net.TCPAddr).Port
		if i < brokers {
			clients = append(clients, port)
		} else {
			controllers = append(controllers, port)
		}
	}
	return clients, controllers, nil
}
