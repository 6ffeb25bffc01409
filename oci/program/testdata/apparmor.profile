abi <abi/3.0>,
profile vitrine-test flags=(attach_disconnected) { file, capability, signal, deny /etc/secret r, }
