import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "edgekit.demo"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        applicationId = "edgekit.demo"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = 1
        versionName = "1.0"
        // Phones, and emulators on PCs: the two for which all three runtimes ship libraries.
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
        // Results quote the runtimes with their versions.
        buildConfigField("String", "LITERT_VERSION", "\"${libs.versions.litert.get()}\"")
        buildConfigField("String", "EXECUTORCH_VERSION", "\"${libs.versions.executorch.get()}\"")
        buildConfigField("String", "ONNXRUNTIME_VERSION", "\"${libs.versions.onnxruntime.get()}\"")
    }

    buildFeatures {
        buildConfig = true
    }

    buildTypes {
        release {
            // Signed as debug builds are, so that `installRelease` works: Kotlin runs faster there.
            signingConfig = signingConfigs.getByName("debug")
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
        }
    }

    sourceSets {
        // What `edgekit embed` puts into a module, without a copy of it.
        getByName("main").kotlin.srcDir("../../edgekit/apps/kotlin")
    }

    // Models are mapped or copied as they are: compressing weights gains little and forbids mapping.
    androidResources {
        noCompress += listOf("tflite", "pte", "onnx", "safetensors")
    }

    packaging {
        jniLibs {
            // ExecuTorch's fbjni and other libraries may each bring the C++ runtime.
            pickFirsts += "**/libc++_shared.so"
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_17
    }
}

dependencies {
    implementation(libs.litert)
    implementation(libs.executorch)
    implementation(libs.onnxruntime)
    implementation(libs.coroutines)
    implementation(libs.exifinterface)
}
