"""deploy/k8s: that the files agree with each other and with the programs, and that what the pods are told to
run does run."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

from tests.faults import cluster as c

FOLDER = "deploy/k8s"
PROGRAMS = {"coordinator": c.COORDINATOR, "expert_server": c.EXPERT_SERVER, "worker": c.WORKER,
            "prepare_text": c.PREPARE_TEXT, "moectl": c.MOECTL}
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"


def documents(name):
    with open(os.path.join(FOLDER, name)) as file:
        return list(yaml.safe_load_all(file))


def lines(name):
    return [line for line in c.read(os.path.join(FOLDER, name)).splitlines()
            if line and not line.startswith("#")]


def flags(words):
    """--name=value of a command or a file: {name: value}."""
    return dict(word[2:].split("=", 1) if "=" in word else (word[2:], "")
                for word in words if word.startswith("--"))


class ManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.kustomization = documents("kustomization.yaml")[0]
        cls.objects = [document for name in cls.kustomization["resources"]
                       for document in documents(name)]
        cls.sets = {o["metadata"]["name"]: o for o in cls.objects if o["kind"] == "StatefulSet"}
        cls.config = {os.path.basename(name): lines(name)
                      for name in cls.kustomization["configMapGenerator"][0]["files"]}

    def of_kind(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def pod(self, name):
        return self.sets[name]["spec"]["template"]["spec"]

    def container(self, name):
        containers = self.pod(name)["containers"]
        self.assertEqual(len(containers), 1)
        return containers[0]

    def flags_of(self, name):
        """All that the pod's program is given, its flag file included."""
        command = flags(self.container(name)["command"])
        file = os.path.basename(command.pop("flagfile"))
        self.assertIn(file, self.config)
        return {**flags(self.config[file]), **command}

    def test_all_files_are_used(self):
        apart = {"kustomization.yaml", "prepare.yaml", "Containerfile"}
        named = set(self.kustomization["resources"]) | set(self.kustomization["configMapGenerator"][0]["files"])
        self.assertEqual(set(os.listdir(FOLDER)) - apart, named)
        self.assertEqual(set(self.sets), {"coordinator", "server", "worker"})

    def test_kubectl_takes_them(self):
        kubectl = shutil.which("kubectl", path="/usr/local/bin:/usr/bin:/snap/bin")
        if not kubectl:
            self.skipTest("there is no kubectl here, and Debian 12's is too old for the file's version")
        # Not through links, as a test's files are: kustomize leaves no folder.
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(FOLDER, os.path.join(folder, "k8s"))
            made = subprocess.run([kubectl, "kustomize", copy], stdout=subprocess.PIPE, check=True,
                                  timeout=c.PATIENCE).stdout
        objects = list(yaml.safe_load_all(made))
        self.assertEqual(sorted(o["kind"] for o in objects),
                         sorted([o["kind"] for o in self.objects] + ["ConfigMap"]))
        for o in objects:
            if o["kind"] != "Namespace":
                self.assertEqual(o["metadata"]["namespace"], self.kustomization["namespace"])

    def test_flags_are_those_of_the_programs(self):
        for name in self.sets:
            program = os.path.basename(self.container(name)["command"][0])
            shown = subprocess.run([PROGRAMS[program], "--help"], stdout=subprocess.PIPE, text=True,
                                   check=True).stdout
            known = set(re.findall(r"^  --(\w+)", shown, re.M))
            for flag in self.flags_of(name):
                self.assertIn(flag, known, program)

    def test_numbers_of_members(self):
        coordinator = self.flags_of("coordinator")
        self.assertEqual(self.sets["coordinator"]["spec"]["replicas"], 1)
        self.assertEqual(int(coordinator["servers"]), self.sets["server"]["spec"]["replicas"])
        self.assertEqual(int(coordinator["workers"]), self.sets["worker"]["spec"]["replicas"])
        described = subprocess.run(
            [c.MOECTL, "describe", "--job", os.path.join(FOLDER, "job.textproto"), "--servers",
             coordinator["servers"], "--workers", coordinator["workers"], "--vocabulary", "10000"], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        self.assertEqual(described.returncode, 0, described.stdout)

    def test_services_and_addresses(self):
        services = {o["metadata"]["name"]: o["spec"] for o in self.of_kind("Service")}
        namespace = self.kustomization["namespace"]
        for name, set_ in self.sets.items():
            self.assertEqual(set_["spec"]["serviceName"], name)
            labels = set_["spec"]["template"]["metadata"]["labels"]
            self.assertEqual(set_["spec"]["selector"]["matchLabels"], labels)
            self.assertEqual(services[name]["selector"], labels)
            self.assertEqual(services[name]["clusterIP"], "None")
            # Servers and workers find a coordinator that is not ready yet, and each other.
            self.assertTrue(services[name]["publishNotReadyAddresses"])
            self.assertEqual(labels, {NAME: "switchyard", COMPONENT: name})
        for name in ("server", "worker"):
            host, port = self.flags_of(name)["coordinator"].split(":")
            self.assertEqual(host, "coordinator.$(POD_NAMESPACE)")
            self.assertEqual(services["coordinator"]["ports"][0]["port"], int(port))
            self.assertEqual(self.flags_of(name)["name"], "$(POD_NAME)")
        self.assertEqual(self.flags_of("server")["advertise"],
                         "$(POD_NAME).server.$(POD_NAMESPACE):%d" % services["server"]["ports"][0]["port"])
        for name in ("coordinator", "server"):
            ports = {p["name"]: p["containerPort"] for p in self.container(name)["ports"]}
            given = self.flags_of(name)
            self.assertEqual(given["listen"], "0.0.0.0:%d" % ports["grpc"])
            self.assertEqual(given["health_address"], "0.0.0.0:%d" % ports["health"])
            self.assertEqual(services[name]["ports"][0]["targetPort"], "grpc")
        self.assertEqual(namespace, "switchyard")

    def test_probes(self):
        for name in ("coordinator", "server"):
            container = self.container(name)
            health = next(p["containerPort"] for p in container["ports"] if p["name"] == "health")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                # The server as a whole: the health of its services is another.
                self.assertEqual(container[probe]["grpc"], {"port": health}, (name, probe))
            self.assertGreaterEqual(
                container["livenessProbe"]["failureThreshold"] *
                container["livenessProbe"]["periodSeconds"], 60)
        self.assertFalse([key for key in self.container("worker") if key.endswith("Probe")])

    def test_variables_are_there(self):
        for name in self.sets:
            container = self.container(name)
            used = set(re.findall(r"\$\((\w+)\)", " ".join(container["command"])))
            self.assertEqual(used - {e["name"] for e in container.get("env", [])}, set())

    def test_paths_are_mounted(self):
        for name in self.sets:
            mounts = {m["mountPath"]: m for m in self.container(name)["volumeMounts"]}
            volumes = {v["name"] for v in self.pod(name)["volumes"]} | {
                t["metadata"]["name"] for t in self.sets[name]["spec"].get("volumeClaimTemplates", [])}
            self.assertEqual({m["name"] for m in mounts.values()}, volumes)
            for flag, value in self.flags_of(name).items():
                if not value.startswith("/"):
                    continue
                mount = max((path for path in mounts if value.startswith(path)), key=len, default=None)
                self.assertIsNotNone(mount, (name, flag, value))
                writes = flag in ("checkpoint_dir", "state_dir", "result_json")
                self.assertEqual(mounts[mount].get("readOnly", False), not writes, (name, flag))
            # Nothing is mounted within a read-only volume: there would be no folder for it.
            for path in mounts:
                self.assertFalse([p for p in mounts if p != path and p.startswith(path + "/")])
        # One folder for the coordinator and all servers.
        claims = {o["metadata"]["name"]: o["spec"]["accessModes"]
                  for o in self.of_kind("PersistentVolumeClaim")}
        for name in ("coordinator", "server"):
            volume = next(v for v in self.pod(name)["volumes"] if v["name"] == "checkpoints")
            self.assertEqual(claims[volume["persistentVolumeClaim"]["claimName"]], ["ReadWriteMany"])
            mounts = {m["name"]: m["mountPath"] for m in self.container(name)["volumeMounts"]}
            self.assertEqual(mounts["checkpoints"], self.flags_of("coordinator")["checkpoint_dir"])

    def test_secrets(self):
        for name in self.sets:
            volume = next(v for v in self.pod(name)["volumes"] if v["name"] == "tls")
            self.assertEqual(volume["secret"], {"secretName": "tls-" + name, "defaultMode": 0o440})
            given = self.flags_of(name)
            self.assertEqual([os.path.basename(given["tls_" + part]) for part in ("ca", "cert", "key")],
                             ["ca.crt", "tls.crt", "tls.key"])
            self.assertNotIn("insecure", given)

    def test_one_member_at_a_time(self):
        budgets = self.of_kind("PodDisruptionBudget")
        self.assertEqual(len(budgets), 1)
        self.assertEqual(budgets[0]["spec"]["maxUnavailable"], 1)
        wanted = budgets[0]["spec"]["selector"]["matchLabels"]
        for name in self.sets:
            labels = self.sets[name]["spec"]["template"]["metadata"]["labels"]
            self.assertEqual({key: labels.get(key) for key in wanted}, wanted)

    def test_who_may_reach_whom(self):
        policies = {o["metadata"]["name"]: o["spec"] for o in self.of_kind("NetworkPolicy")}
        self.assertEqual(set(policies), set(self.sets))
        callers = {"coordinator": {"server", "worker", "operator"}, "server": {"worker", "operator"},
                   "worker": set()}
        for name, policy in policies.items():
            self.assertEqual(policy["podSelector"]["matchLabels"],
                             self.sets[name]["spec"]["template"]["metadata"]["labels"])
            self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
            allowed = set()
            for rule in policy["ingress"]:
                self.assertEqual(rule["ports"], [{"port": 7070}])
                for peer in rule["from"]:
                    for expression in peer["podSelector"]["matchExpressions"]:
                        self.assertEqual((expression["key"], expression["operator"]), (COMPONENT, "In"))
                        allowed |= set(expression["values"])
            self.assertEqual(allowed, callers[name])

    def test_pods_ask_for_nothing_more_than_they_need(self):
        for name in self.sets:
            pod, container = self.pod(name), self.container(name)
            self.assertIs(pod["automountServiceAccountToken"], False)
            self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
            self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertEqual(container["securityContext"], {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]}})
            self.assertIn("memory", container["resources"]["limits"])
            self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], 30)

    def test_the_image_has_the_libraries(self):
        listed, group = set(), None
        for line in c.read("deploy/packages.txt").splitlines():
            line = line.split("#")[0].strip()
            if line.startswith("["):
                group = line.strip("[]")
            elif line and group == "libraries":
                listed.add(line)
        owner_of = {}
        # What every Debian has, too.
        for package in listed | {"libc6", "libgcc-s1", "libstdc++6"}:
            files = c.read("/var/lib/dpkg/info/%s:amd64.list" % package) or c.read(
                "/var/lib/dpkg/info/%s.list" % package)
            for path in files.splitlines():
                owner_of[os.path.basename(path)] = package
        needed = set()
        for program in PROGRAMS.values():
            shown = subprocess.run(["readelf", "-d", program], stdout=subprocess.PIPE, text=True,
                                   check=True).stdout
            for library in re.findall(r"NEEDED.*\[(.*)\]", shown):
                self.assertIn(library, owner_of, program)
                needed.add(owner_of[library])
        self.assertEqual(listed - needed, set())

    def test_the_image_has_the_paths(self):
        containerfile = c.read(os.path.join(FOLDER, "Containerfile"))
        for name in self.sets:
            program = self.container(name)["command"][0]
            self.assertEqual(os.path.dirname(program), "/usr/lib/switchyard")
            self.assertRegex(containerfile, r"bazel-bin/\S*/%s\b" % os.path.basename(program))
        for target in re.findall(r"//(\S+):(\w+)", containerfile):
            self.assertIn("/".join(target), [*PROGRAMS.values()])
        self.assertIn("USER %d" % self.pod("server")["securityContext"]["runAsUser"], containerfile)
        self.assertIn("-t %s:%s" % (self.kustomization["images"][0]["newName"],
                                    self.kustomization["images"][0]["newTag"]), containerfile)
        prepare = documents("prepare.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
        self.assertEqual(prepare["image"], "{newName}:{newTag}".format(**self.kustomization["images"][0]))
        self.assertIn("--out " + self.flags_of("worker")["data"], prepare["args"][0])


def may_mount():
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"],
                                                stderr=subprocess.DEVNULL).returncode == 0


@unittest.skipUnless(may_mount(), "this isn't root, which may mount")
class PodsTest(c.TestCase):
    """The pods' commands on this host: with the paths and the names that they have there, with TLS. Only the
    addresses that they listen on differ, since they share one network."""

    def setUp(self):
        manifests = ManifestsTest("test_secrets")
        ManifestsTest.setUpClass()
        self.manifests = manifests
        self.folder = tempfile.mkdtemp(dir=self.root)
        self.processes = {}
        self.pods = {"coordinator-0": "127.0.71.1", "server-0": "127.0.71.2", "server-1": "127.0.71.3"}
        for name in ("config", "state", "checkpoints", "data", "programs"):
            os.mkdir(os.path.join(self.folder, name))
        for name in ("coordinator.flags", "server.flags", "worker.flags"):
            shutil.copy(os.path.join(FOLDER, name), os.path.join(self.folder, "config"))
        with open(os.path.join(self.folder, "config", "job.textproto"), "w") as file:
            file.write(c.job(steps=200, every_steps=50))
        shutil.copytree(self.data, os.path.join(self.folder, "data", "text"))
        for name, program in PROGRAMS.items():
            shutil.copy(os.path.realpath(program), os.path.join(self.folder, "programs", name))
        with open(os.path.join(self.folder, "hosts"), "w") as file:
            file.write("127.0.0.1 localhost\n127.0.71.1 coordinator.switchyard\n"
                       "127.0.71.2 server-0.server.switchyard\n127.0.71.3 server-1.server.switchyard\n")
        # As README.md says.
        certificates = os.path.join(self.folder, "certificates")
        for arguments in (["--role", "coordinator", "--host", "coordinator.switchyard"],
                          ["--role", "server", "--host", "*.server.switchyard"],
                          ["--role", "worker", "--role", "operator"]):
            c.make_certificates(certificates, *arguments)
        for role in ("coordinator", "server", "worker", "operator"):
            secret = os.path.join(self.folder, "tls-" + role)
            os.mkdir(secret)
            for source, target in (("ca.crt", "ca.crt"), (role + ".crt", "tls.crt"), (role + ".key", "tls.key")):
                shutil.copy(os.path.join(certificates, source), os.path.join(secret, target))

    def run_in_pod(self, component, command):
        """The command, with the pod's files where it has them."""
        mounts = [("programs", "/usr/lib/switchyard"), ("config", "/etc/switchyard"), ("state", "/state"),
                  ("checkpoints", "/checkpoints"), ("data", "/data"), ("tls-" + component, "/tls"),
                  ("hosts", "/etc/hosts")]
        script = "mount --make-rprivate / && cd {0} && ".format(self.folder)
        # Over a root of its own, in which folders can be made.
        script += ("mkdir -p o && mount -t tmpfs t o && mkdir o/u o/w o/r && "
                   "mount -t overlay o -o lowerdir=/,upperdir=o/u,workdir=o/w o/r && "
                   "mount --rbind /proc o/r/proc && mount --rbind /dev o/r/dev && ")
        for source, target in mounts:
            if source != "hosts":
                script += "mkdir -p o/r{} && ".format(target)
            script += "mount --bind {} o/r{} && ".format(source, target)
        return ["unshare", "--mount", "bash", "-c", script + 'exec chroot o/r "$@"', "bash"] + command

    def start(self, component, number=0):
        name = "%s-%d" % (component, number)
        env = {"POD_NAME": name, "POD_NAMESPACE": "switchyard", "MEMORY_GIB": "2", "CPUS": "1"}
        command = [re.sub(r"\$\((\w+)\)", lambda m: env[m.group(1)], word)
                   for word in self.manifests.container(component)["command"]]
        if name in self.pods:
            command += ["--listen=%s:7070" % self.pods[name], "--health_address=%s:7071" % self.pods[name]]
        process = c.Process(name, self.run_in_pod(component, command), self.folder)
        self.addCleanup(process.close)
        self.processes[name] = process
        return process

    def report(self):
        return "\n".join(process.report() for process in self.processes.values())

    def await_that(self, condition, what):
        deadline = c.time.monotonic() + c.PATIENCE
        while not condition():
            dead = [p for p in self.processes.values() if p.status is not None]
            if dead or c.time.monotonic() > deadline:
                self.fail("waited for this: {}\n{}".format(what, self.report()))
            c.time.sleep(0.1)

    def test_they_train(self):
        # In any order.
        for component, number in (("worker", 1), ("server", 0), ("coordinator", 0), ("server", 1),
                                  ("worker", 0)):
            self.start(component, number)
        coordinator = self.processes["coordinator-0"]
        self.await_that(lambda: re.search("^checkpoint ", coordinator.stdout, re.M), "a checkpoint")
        # A pod that is deleted comes again.
        lost = self.processes.pop("server-1")
        lost.send(9)
        lost.wait()
        self.start("server", 1)
        self.await_that(lambda: "parameter digest" in coordinator.stdout, "the job is finished")
        # And nobody ends, so that nothing is started again.
        c.time.sleep(1)
        for process in self.processes.values():
            self.assertIsNone(process.status, self.report())
        status = c.Process("moectl", self.run_in_pod("operator", [
            "/usr/lib/switchyard/moectl", "status", "--json", "--coordinator", "coordinator.switchyard:7070",
            "--tls_ca=/tls/ca.crt", "--tls_cert=/tls/tls.crt", "--tls_key=/tls/tls.key"]), self.folder)
        self.addCleanup(status.close)
        self.assertEqual(status.wait(), 0, status.report())
        self.assertEqual(json.loads(status.stdout)["state"]["phase"], "PHASE_FINISHED")
        for process in self.processes.values():
            process.send(15)
        for process in self.processes.values():
            self.assertEqual(process.wait(c.FAULT), 0, self.report())


if __name__ == "__main__":
    c.main()
