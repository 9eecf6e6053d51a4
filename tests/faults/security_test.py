"""Connections with TLS: jobs over them, and everything that is refused, with the stated error."""

import os
import re
import shutil
import time

from tests.faults import cluster as c
from tests.faults import undisturbed as u


class SecurityCase(c.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.certificates = c.make_certificates(os.path.join(cls.root, "certificates"))
        cls.strangers = c.make_certificates(os.path.join(cls.root, "strangers"))
        # By the same authority.
        cls.expired = os.path.join(cls.root, "expired")
        os.mkdir(cls.expired)
        for file in ("ca.crt", "ca.key"):
            shutil.copy(os.path.join(cls.certificates, file), cls.expired)
        c.make_certificates(cls.expired, "--from", "3 days ago", "--until", "1 day ago")

    def tls(self, name, folder=None, ca=None):
        return c.tls_flags(folder or self.certificates, name, ca)

    def moectl(self, *words, env=None):
        return self.run_program([c.MOECTL] + list(words), env=env)


class JobTest(u.UndisturbedCase, SecurityCase):
    def start(self, folder, **options):
        cluster = self.new_cluster(self.job)
        return cluster.start(
            servers=2, workers=2, flags=u.FLAGS + self.tls("coordinator", folder),
            server_flags=u.SERVER_FLAGS + self.tls("server", folder),
            worker_flags=u.WORKER_FLAGS + self.tls("worker", folder), **options)

    def test_job_over_tls(self):
        cluster = self.start(None)
        self.await_checkpoint(cluster)
        coordinator = ["--coordinator", cluster.address]
        for role in ("operator", "observer"):
            for command in ("status", "members", "shards", "experts"):
                shown = self.moectl(command, *coordinator, *self.tls(role))
                self.assertEqual(shown.status, 0, shown.report())
        environment = dict(zip(("MOE_TLS_CA", "MOE_TLS_CERT", "MOE_TLS_KEY"),
                               self.tls("operator")[1::2]))
        taken = self.moectl("checkpoint", *coordinator, env=environment)
        self.assertEqual(taken.status, 0, taken.report())
        refused = self.moectl("checkpoint", *coordinator, *self.tls("observer"))
        self.assertEqual(refused.status, 1, refused.report())
        self.assertRegex(
            refused.last_line, "/moe.v1.OperatorService/TakeCheckpoint is for the role operator; "
            "the certificate of CN=observer.* has the role observer")
        self.assert_undisturbed(cluster, generations=1)

    def test_certificates_replaced_in_mid_run(self):
        folder = os.path.join(self.root, "replaced")
        shutil.copytree(self.strangers, folder)
        cluster = self.start(folder)
        self.await_checkpoint(cluster)
        # In one step the authority, too; the files of before are gone.
        self.replace(folder, self.certificates)
        # Connections stay.
        steps = self.steps(cluster)
        cluster.await_that(lambda: self.steps(cluster) > steps, "the job goes on")
        coordinator = ["--coordinator", cluster.address]
        deadline = time.monotonic() + c.FAULT
        while True:
            fresh = self.moectl("status", *coordinator, *self.tls("operator"))
            if fresh.status == 0 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self.assertEqual(fresh.status, 0, fresh.report())
        old = self.moectl("status", *coordinator, *self.tls("operator", self.strangers))
        self.assertEqual(old.status, 1, old.report())
        self.assertRegex(old.last_line, "certificate of %s was refused: " % cluster.address)
        # Every connection is new in the next generation, of processes old and new.
        cluster.kill("w1")
        self.assertNotEqual(self.steps(cluster), u.STEPS)
        cluster.start_worker("w1", u.WORKER_FLAGS + self.tls("worker"))
        self.assert_undisturbed(cluster, generations=2)

    def replace(self, folder, source):
        for name in os.listdir(source):
            temporary = os.path.join(folder, name + ".new")
            shutil.copy(os.path.join(source, name), temporary)
            os.rename(temporary, os.path.join(folder, name))

    def steps(self, cluster):
        steps = re.findall(r"^step ([0-9]+)/", cluster["coordinator"].stdout, re.M)
        return int(steps[-1]) if steps else 0


class RefusedTest(SecurityCase):
    def start_coordinator(self, name="coordinator", folder=None, **options):
        cluster = self.new_cluster(c.job(steps=3))
        cluster.start_coordinator(
            flags=self.tls(name, folder) if name else [], **options)
        return cluster

    def assert_refused(self, cluster, flags, cause, start="start_worker", name="w0"):
        since = time.monotonic()
        process = getattr(cluster, start)(name, flags=flags)
        self.assertEqual(process.wait(c.FAULT), 1, process.report())
        self.assertLess(time.monotonic() - since, c.FAULT)
        self.assertRegex(process.last_line, cause)
        # Nobody else minds.
        self.assertIsNone(cluster["coordinator"].status, cluster.report())
        del cluster.processes[name]

    def test_peers_with_the_wrong_certificates(self):
        cluster = self.start_coordinator()
        address = cluster.address
        self.assert_refused(cluster, self.tls("worker", self.strangers),
                            "certificate of %s was refused: " % address)
        # It trusts the coordinator, which doesn't trust it.
        self.assert_refused(
            cluster,
            self.tls("worker", self.strangers, os.path.join(self.certificates, "ca.crt")),
            "%s refused the certificate %s/worker.crt: .*valid until" % (address, self.strangers))
        self.assert_refused(cluster, self.tls("worker", self.expired),
                            "--tls_cert: .*/expired/worker.crt: expired on 20.* UTC")
        self.assert_refused(cluster, self.tls("server"),
                            "server.crt isn't for this program: it has the role server instead of "
                            "worker")
        self.assert_refused(cluster, [],
                            "%s speaks TLS and this process doesn't: give it --tls_ca" % address)
        for flags, cause in ((["--tls_ca", "x"], "--tls_ca without --tls_cert and --tls_key"),
                             (self.tls("nobody"), "--tls_cert: .*nobody.crt.*No such file")):
            self.assert_refused(cluster, flags, cause)
            self.assert_refused(cluster, flags, cause, "start_server", "s0")
            shown = self.moectl("status", "--coordinator", address, *flags)
            self.assertEqual(shown.status, 1, shown.report())
            self.assertRegex(shown.last_line, cause)
        shown = self.moectl("status", "--coordinator", address)
        self.assertRegex(shown.last_line, "%s speaks TLS and this process doesn't" % address)
        shown = self.moectl("status", "--coordinator", address, *self.tls("worker"))
        self.assertRegex(shown.last_line, "has the role worker instead of operator or observer")
        # And who should join still can.
        cluster.start_server("s0", flags=self.tls("server"))
        cluster.start_worker("w0", flags=self.tls("worker"))
        self.assert_finished(cluster)

    def test_certificate_that_expires_while_it_is_in_use(self):
        folder = os.path.join(self.root, "short")
        os.mkdir(folder)
        for file in ("ca.crt", "ca.key"):
            shutil.copy(os.path.join(self.certificates, file), folder)
        c.make_certificates(folder, "--until", "6 seconds", "--role", "coordinator")
        cluster = self.start_coordinator(folder=folder)
        shown = self.moectl("status", "--coordinator", cluster.address, *self.tls("operator"))
        self.assertEqual(shown.status, 0, shown.report())
        time.sleep(7)
        self.assert_refused(cluster, self.tls("worker"), "certificate of %s was refused: "
                            "certificate has expired" % cluster.address)

    def test_plaintext_coordinator(self):
        cluster = self.start_coordinator(name=None)
        self.assert_refused(cluster, self.tls("worker"),
                            "%s doesn't speak TLS as this process does" % cluster.address)

    def test_coordinator_with_the_wrong_role(self):
        cluster = self.start_coordinator(name="worker", wait=False)
        self.assert_failed(cluster, time.monotonic(),
                           "worker.crt isn't for this program: it has the role worker instead of "
                           "coordinator")

    def test_server_that_workers_refuse(self):
        """Its certificate is for another host."""
        folder = os.path.join(self.root, "elsewhere")
        os.mkdir(folder)
        for file in ("ca.crt", "ca.key"):
            shutil.copy(os.path.join(self.certificates, file), folder)
        c.make_certificates(folder, "--role", "server", "--host", "elsewhere.example")
        cluster = self.start_coordinator()
        since = time.monotonic()
        cluster.start_server("s0", flags=self.tls("server", folder))
        cluster.start_worker("w0", flags=self.tls("worker"))
        self.assert_failed(cluster, since, "certificate of 127.0.0.1:.* was refused: it is for "
                           "elsewhere.example, not for 127.0.0.1")


class ListenTest(SecurityCase):
    def test_plaintext_beyond_this_machine(self):
        for program in ("coordinator", "server"):
            with self.subTest(program=program):
                cluster = self.new_cluster(c.job(steps=3))
                if program == "server":
                    cluster.start_coordinator()
                    process = cluster.start_server("s0", flags=["--listen", "0.0.0.0:0"])
                else:
                    process = cluster.start_coordinator(listen="0.0.0.0:0", wait=False)
                self.assertEqual(process.wait(c.FAULT), 1, process.report())
                self.assertRegex(process.last_line, "cannot listen on 0.0.0.0:0 without TLS, .*"
                                 "--tls_ca, --tls_cert and --tls_key, or, .* --insecure")

    def test_insecure(self):
        cluster = self.new_cluster(c.job(steps=3))
        cluster.start_coordinator(listen="0.0.0.0:0", flags=["--insecure"])
        cluster.address = "127.0.0.1:" + cluster.address.rsplit(":", 1)[1]
        cluster.start_server("s0", flags=["--insecure"])
        cluster.start_worker("w0")
        self.assert_finished(cluster)

    def test_insecure_with_tls(self):
        process = self.run_program([c.EXPERT_SERVER, "--name", "s0", "--coordinator", "x:1",
                                    "--insecure"] + self.tls("server"))
        self.assertEqual(process.status, 2, process.report())
        self.assertRegex(process.stderr, "--insecure doesn't go with --tls_ca")

    def test_flags_in_a_file_and_in_the_help(self):
        path = os.path.join(self.root, "worker.flags")
        flags = self.tls("server")
        with open(path, "w") as file:
            for flag, value in zip(flags[::2], flags[1::2]):
                file.write("%s=%s\n" % (flag, value))
        process = self.run_program([c.WORKER, "--flagfile", path, "--data", self.data])
        self.assertRegex(process.last_line, "server.crt isn't for this program")
        servers = ["insecure", "health_address", "reflection", "channelz", "stop_timeout",
                   "rpc_memory_gib"]
        for program, names in ((c.WORKER, []), (c.EXPERT_SERVER, servers),
                               (c.COORDINATOR, servers)):
            help_text = self.run_program([program, "--help"]).stdout
            for name in ["tls_ca", "tls_cert", "tls_key"] + names:
                self.assertIn("  --%s (default: " % name, help_text)
        self.assertIn("--tls_cert FILE", self.moectl("status", "--help").stdout)


if __name__ == "__main__":
    c.main()
