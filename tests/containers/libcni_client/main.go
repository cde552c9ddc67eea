// A container runtime's half of CNI by libcni itself: `client add|check|del CONFLIST ID NETNS IFNAME`, with libcni's
// cache, its validation of versions, and the variables CNI_PATH, CNI_ARGS and CAP_ARGS (a JSON object, as cnitool has
// it). On success the result as JSON, on failure the plugin's words and exit code 1.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	verb, file, id, netns, ifname := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	runtime := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: ifname}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		if name, value, found := strings.Cut(pair, "="); found {
			runtime.Args = append(runtime.Args, [2]string{name, value})
		}
	}
	if told := os.Getenv("CAP_ARGS"); told != "" {
		fail(json.Unmarshal([]byte(told), &runtime.CapabilityArgs))
	}
	conflist, err := libcni.ConfListFromFile(file)
	fail(err)
	cni := libcni.NewCNIConfig(strings.Split(os.Getenv("CNI_PATH"), ":"), nil)
	switch verb {
	case "add":
		result, err := cni.AddNetworkList(context.TODO(), conflist, runtime)
		fail(err)
		fail(result.Print())
	case "check":
		fail(cni.CheckNetworkList(context.TODO(), conflist, runtime))
	case "del":
		fail(cni.DelNetworkList(context.TODO(), conflist, runtime))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
