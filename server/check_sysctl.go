package server

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sysctl"
)

// checkSysctls lets only those through that are in a namespace of the pod's own,
// and only where the pod has that namespace: with the host's, a pod would set
// the node's values.
func checkSysctls(sysctls map[string]string, ns *runtimeapi.NamespaceOption) error {
	for k, v := range sysctls {
		err := first(text("", k, sysctlKey), sysctlPlace(k, ns), sysctlValue(v))
		if err != nil {
			return atKey("sysctls", k, err)
		}
	}
	return nil
}

// sysctlKey: words joined by dots or slashes. A slash may stand for a dot, as in
// sysctl(8), where an interface name has a dot of its own. An empty word would
// make two dots in a row, and those a way out of the directory.
func sysctlKey(k string) string {
	for {
		end := strings.IndexFunc(k, dotOrSlash)
		word := k
		if end >= 0 {
			word = k[:end]
		}
		if word == "" || chars("-_")(word) != "" || edges(word) != "" {
			return "must be words of letters, digits, '-' and '_', joined by dots"
		}
		if end < 0 {
			break
		}
		k = k[end+1:]
	}
	return ""
}

func dotOrSlash(r rune) bool { return r == '.' || r == '/' }

func sysctlPlace(k string, ns *runtimeapi.NamespaceOption) error {
	switch sysctl.Of(sysctl.Path(k)) {
	case sysctl.Net:
		if ns.GetNetwork() == runtimeapi.NamespaceMode_NODE {
			return wrong("", "must not be set in the host's network namespace")
		}
	case sysctl.IPC:
		if ns.GetIpc() == runtimeapi.NamespaceMode_NODE {
			return wrong("", "must not be set in the host's IPC namespace")
		}
	default:
		return wrong("", "must belong to a namespace of the pod: net.*, fs.mqueue.* or System V IPC")
	}
	return nil
}

// sysctlValue: no '+', with which other runtimes joined several sysctls and let
// one smuggle in another (CVE-2022-0811).
func sysctlValue(v string) error {
	return text("", v, required, func(v string) string {
		for i := 0; i < len(v); i++ {
			if v[i] != '\t' && (v[i] < ' ' || v[i] > '~') || v[i] == '+' {
				return "must be one line of printable ASCII without '+'"
			}
		}
		return ""
	})
}
