"""The build files of a module: what Gradle, R8 and the manifest merger read."""

from edgekit.apps.android_runtimes import ABIS, COMPILE_SDK, COROUTINES, EXIF, RUNTIMES, TEST_LIBRARIES
from edgekit.apps.model import AppModel
from edgekit.apps.naming import comment, kotlin_string

ANDROID_MANIFEST = """<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" />
"""


def build_script(model: AppModel, package: str) -> str:
    """build.gradle.kts: of a library, for the Android Gradle plugin 8 and 9."""
    runtime = RUNTIMES[model.target]
    suffix = kotlin_string(model.artifact.model_path.suffix.removeprefix("."))
    tests = "\n".join(f"    androidTestImplementation({kotlin_string(name)})" for name in TEST_LIBRARIES)
    return f"""import com.android.build.api.AndroidPluginVersion
import org.jetbrains.kotlin.gradle.dsl.JvmTarget
import org.jetbrains.kotlin.gradle.tasks.KotlinJvmCompile

plugins {{
    id("com.android.library")
}}

// From version 9 on the Android plugin compiles Kotlin itself.
if (androidComponents.pluginVersion < AndroidPluginVersion(9, 0)) {{
    apply(plugin = "org.jetbrains.kotlin.android")
}}

android {{
    namespace = {kotlin_string(package)}
    compileSdk = {COMPILE_SDK}

    defaultConfig {{
        minSdk = {runtime.min_sdk}
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        consumerProguardFiles("consumer-rules.pro")
        ndk {{
            abiFilters += listOf({", ".join(map(kotlin_string, ABIS))})
        }}
    }}

    // The model is mapped or copied as it is: compressing weights gains little and forbids mapping.
    androidResources {{
        noCompress += listOf({suffix}, "safetensors")
    }}

    compileOptions {{
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }}
}}

tasks.withType<KotlinJvmCompile>().configureEach {{
    compilerOptions {{
        jvmTarget.set(JvmTarget.JVM_17)
    }}
}}

dependencies {{
    // {runtime.title}: of the version that the model was exported for, or the next that there is.
    api({kotlin_string(runtime.library)})
    api({kotlin_string(COROUTINES)})
    implementation({kotlin_string(EXIF)})

{tests}
}}
"""


def consumer_rules(model: AppModel) -> str:
    """consumer-rules.pro: what R8 must not remove or rename in an app with this module."""
    return "\n".join(
        (f"# Rules for apps with {comment(model.artifact.manifest.name)}.", *RUNTIMES[model.target].keep, "")
    )
